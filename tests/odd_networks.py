"""Small networks with odd structure: an odd body between a stem and a head, or an odd whole."""

from collections import OrderedDict
from functools import partial
from types import MethodType

import torch
import torch.nn.functional as F
import torchvision.models as zoo
import torchvision.ops as ops
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm

SHAPE = (3, 8, 8)  # of an input, without the batch


class Net(nn.Module):
    """A module that runs a function on itself and its input."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.run(self, x)


class Scaled(Net):
    """One with an optional second input."""

    def forward(self, x, scale=2.0):
        return self.run(self, x * scale)


class Pair(Net):
    """One with two inputs."""

    def forward(self, x, z):
        return self.run(self, x + z)


class Standardized(nn.Conv2d):
    """A convolution that computes its weight in its own forward pass."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


class Doubled(nn.Conv2d):
    """A convolution whose output is doubled by its own forward pass."""

    def forward(self, x):
        return 2 * super().forward(x)


class Tripled(nn.Conv2d):
    """A convolution that convolves in its own way."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, 3 * weight, bias)


class Padded(nn.Conv2d):
    """A convolution with arguments of its own, and torch's forward pass."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, 3, padding=1)


class Norm(nn.BatchNorm2d):
    """A BatchNorm by another name."""


class Act(nn.ReLU):
    """An activation by another name."""


def conv(inputs=8, outputs=8, kernel=3, **how):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **how)


def head():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def around(body):
    """A network with an odd body."""
    return nn.Sequential(OrderedDict(stem=conv(3), body=body, head=head()))


def two(run=lambda s, x: s.b(F.relu(s.a(x))), **parts):
    """A body of two convolutions, `a` with 12 outputs and `b`, and what else is given."""
    return Net(run, **{"a": conv(8, 12), "b": conv(12, 8)} | parts)


def changed(module, *changes):
    """The module after changes of it."""
    for change in changes:
        change(module)
    return module


def tie(name, of="weight"):
    """Share a tensor of `a` with another layer."""

    def change(body):
        setattr(body.get_submodule(name), of, getattr(body.a, of))

    return change


def shuffle(x, groups=4):
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def flipped(layer, x):
    return F.conv2d(x.flip(1), layer.weight, layer.bias, padding=1)


def hooked(name, hook):
    return lambda body: body.get_submodule(name).register_forward_hook(hook)


BODIES = {
    # shared
    "tied weights": lambda: changed(two(lambda s, x: s.b(F.relu(s.a(x))), a=conv(), b=conv()), tie("b")),
    "tied biases": lambda: changed(two(lambda s, x: s.c(s.b(s.a(x))), b=conv(12, 12), c=conv(12, 8)), tie("b", "bias")),
    "tied inner weights": lambda: changed(
        two(lambda s, x: s.d(s.c(F.relu(s.b(s.a(x))))), b=conv(12, 12, 1), c=conv(12, 12, 1), d=conv(12, 8)),
        lambda body: setattr(body.c, "weight", body.b.weight),
    ),
    "tied BatchNorm": lambda: changed(
        two(lambda s, x: s.b(s.m(s.n(s.a(x)))), n=nn.BatchNorm2d(12), m=nn.BatchNorm2d(12)),
        lambda body: setattr(body.m, "weight", body.n.weight),
    ),
    "a layer applied twice": lambda: two(lambda s, x: s.b(s.c(F.relu(s.c(s.a(x))))), c=conv(12, 12)),
    "a layer applied twice at the end": lambda: two(lambda s, x: s.c(F.relu(s.c(s.b(s.a(x))))), c=conv()),
    "a BatchNorm applied twice": lambda: two(lambda s, x: s.b(s.n(F.relu(s.n(s.a(x))))), n=nn.BatchNorm2d(12)),
    "one activation under two names": lambda: changed(
        two(lambda s, x: s.q(s.b(s.p(s.a(x)))), p=nn.ReLU()), lambda body: setattr(body, "q", body.p)
    ),
    "an alias in a ModuleList": lambda: changed(
        two(lambda s, x: s.layers[1](F.relu(s.layers[0](x)))),
        lambda body: setattr(body, "layers", nn.ModuleList([body.a, body.b])),
    ),
    "an alias in a plain list": lambda: changed(
        two(lambda s, x: s.layers[1](F.relu(s.layers[0](x)))), lambda body: setattr(body, "layers", [body.a, body.b])
    ),
    "an alias of a parameter": lambda: changed(
        two(lambda s, x: s.b(F.relu(s.a(x))) + s.w.mean()), lambda body: setattr(body, "w", body.a.weight)
    ),
    "a ModuleDict": lambda: Net(
        lambda s, x: s.d["b"](F.relu(s.d["a"](x))), d=nn.ModuleDict({"a": conv(8, 12), "b": conv(12, 8)})
    ),
    # computed weights
    "spectral norm": lambda: two(a=parametrizations.spectral_norm(conv(8, 12))),
    "spectral norm by a hook": lambda: two(b=spectral_norm(conv(12, 8))),
    "weight norm": lambda: two(b=parametrizations.weight_norm(conv(12, 8))),
    "pruned by a mask": lambda: two(b=prune.l1_unstructured(conv(12, 8), "weight", 0.5)),
    "standardized in forward": lambda: two(a=Standardized(8, 12, 3, padding=1), b=Standardized(12, 8, 3, padding=1)),
    "doubled in forward": lambda: two(b=Doubled(12, 8, 3, padding=1)),
    "tripled in its own convolution": lambda: two(b=Tripled(12, 8, 3, padding=1)),
    "subclasses of layers": lambda: two(
        lambda s, x: s.q(s.m(s.b(s.p(s.n(s.a(x)))))),
        **{"a": Padded(8, 12), "b": Padded(12, 8), "n": Norm(12), "m": Norm(8), "p": Act(), "q": Act()},
    ),
    "functional convolutions": lambda: Net(
        lambda s, x: F.conv2d(F.relu(F.conv2d(x, s.v, padding=1)), s.w, padding=1),
        v=nn.Parameter(torch.randn(12, 8, 3, 3) / 8),
        w=nn.Parameter(torch.randn(8, 12, 3, 3) / 8),
    ),
    "a ParameterList": lambda: Net(
        lambda s, x: F.conv2d(F.relu(F.conv2d(x, s.w[0], padding=1)), s.w[1], padding=1),
        w=nn.ParameterList([torch.randn(12, 8, 3, 3) / 8, torch.randn(8, 12, 3, 3) / 8]),
    ),
    "a weight read outside its layer": lambda: two(
        lambda s, x: s.b(F.relu(s.a(x))) + s.b(F.conv2d(x, s.a.weight, padding=1))
    ),
    "a weight read outside its layer, as a number": lambda: two(lambda s, x: s.b(F.relu(s.a(x))) * s.a.weight.norm()),
    "a bias read outside its layer": lambda: two(lambda s, x: s.b(F.relu(s.a(x)) - s.a.bias.view(1, -1, 1, 1))),
    "a weight read by another layer": lambda: two(
        lambda s, x: s.b(F.relu(s.a(x))) + s.c(F.conv2d(x, s.a.weight, padding=1)), c=conv(12, 8)
    ),
    "statistics read outside their layer": lambda: two(
        lambda s, x: s.b(s.n(s.a(x))) + s.n.running_var.mean(), n=nn.BatchNorm2d(12)
    ),
    "a parametrized bias": lambda: changed(
        two(), lambda body: parametrize.register_parametrization(body.a, "bias", nn.Tanh())
    ),
    "a forward of its own": lambda: changed(
        two(), lambda body: setattr(body.b, "forward", MethodType(flipped, body.b))
    ),
    "a low-rank correction": lambda: two(
        lambda s, x: s.b(F.relu(F.conv2d(x, s.a.weight + (s.u @ s.v).view_as(s.a.weight), s.a.bias, padding=1))),
        u=nn.Parameter(torch.randn(12, 2) / 4),
        v=nn.Parameter(torch.randn(2, 72) / 4),
    ),
    # sums
    "a functional residual block": lambda: two(
        lambda s, x: F.relu(s.m(s.b(F.relu(s.n(s.a(x))))) + x), n=nn.BatchNorm2d(12), m=nn.BatchNorm2d(8)
    ),
    "a residual sum in place": lambda: two(lambda s, x: torch.relu(s.b(F.relu(s.a(x))).add_(x))),
    "a residual sum by +=": lambda: two(lambda s, x: iadd(s.b(F.relu_(s.a(x))), x).relu()),
    "a residual sum with alpha": lambda: two(lambda s, x: torch.add(x, s.b(F.relu(s.a(x))), alpha=0.1)),
    "a residual sum with alpha on the input": lambda: two(lambda s, x: torch.add(s.b(F.relu(s.a(x))), x, alpha=0.5)),
    "a residual difference": lambda: two(lambda s, x: x - s.b(F.relu(s.a(x)))),
    "a scaled residual": lambda: two(lambda s, x: x + 0.2 * s.b(F.relu(s.a(x)))),
    "a learned scale": lambda: two(
        lambda s, x: x + s.scale * s.b(F.relu(s.a(x))), scale=nn.Parameter(torch.rand(8, 1, 1))
    ),
    "a learned scale inside": lambda: two(
        lambda s, x: s.b(s.scale * F.relu(s.a(x))), scale=nn.Parameter(torch.rand(1, 12, 1, 1))
    ),
    "a sum of two branches": lambda: two(lambda s, x: F.relu(s.b(F.relu(s.a(x))) + s.c(x)), c=conv(8, 8, 1)),
    "a value used twice": lambda: two(lambda s, x: (lambda y: s.b(y + y * y))(F.relu(s.a(x)))),
    # channels
    "GroupNorm": lambda: two(lambda s, x: s.b(F.relu(s.n(s.a(x)))), n=nn.GroupNorm(3, 12)),
    "InstanceNorm": lambda: two(lambda s, x: s.b(F.relu(s.n(s.a(x)))), n=nn.InstanceNorm2d(12, affine=True)),
    "a norm over channels": lambda: two(lambda s, x: s.b(F.normalize(s.a(x), dim=1))),
    "a softmax over channels": lambda: two(lambda s, x: s.b(s.a(x).softmax(1))),
    "PReLU": lambda: two(lambda s, x: s.b(s.p(s.a(x))), p=nn.PReLU(12)),
    "grouped convolution": lambda: two(lambda s, x: s.b(F.relu(s.c(s.a(x)))), c=conv(12, 12, groups=3)),
    "depthwise convolution": lambda: two(lambda s, x: s.b(F.relu(s.c(s.a(x)))), c=conv(12, 12, groups=12)),
    "depthwise convolution with a multiplier": lambda: two(
        lambda s, x: s.b(F.relu(s.c(s.a(x)))), c=conv(12, 24, groups=12), b=conv(24, 8)
    ),
    "transposed convolution": lambda: two(
        lambda s, x: s.b(F.relu(s.c(s.a(x)))), c=nn.ConvTranspose2d(12, 12, 3, padding=1)
    ),
    "channel shuffle": lambda: two(lambda s, x: s.b(shuffle(s.a(x)))),
    "a slice of channels": lambda: two(lambda s, x: s.b(F.relu(s.a(x))[:, 2:10]), b=conv(8, 8)),
    "halves of channels": lambda: two(lambda s, x: s.b(torch.cat(s.a(x).chunk(2, 1)[::-1], 1))),
    "squeeze and excitation": lambda: two(
        lambda s, x: s.b(s.e(F.relu(s.a(x)))), e=ops.SqueezeExcitation(12, 3), b=conv(12, 8)
    ),
    "dense connections": lambda: two(
        lambda s, x: (lambda y: s.c(torch.cat([x, y, F.relu(s.b(y))], 1)))(F.relu(s.a(x))), c=conv(28, 8)
    ),
    "a value joined with itself": lambda: two(
        lambda s, x: (lambda y: s.b(torch.cat([y, y], -3)))(F.relu(s.a(x))), b=conv(24, 8)
    ),
    "circular padding": lambda: two(b=conv(12, 8, padding_mode="circular")),
    "dilation, stride and upsampling": lambda: two(
        lambda s, x: F.interpolate(s.b(F.relu(s.a(x))), size=x.shape[2:]),
        a=nn.Conv2d(8, 12, 3, stride=2, padding=2, dilation=2),
    ),
    "a linear layer over positions": lambda: two(lambda s, x: s.b(s.f(s.a(x))), f=nn.Linear(8, 8)),
    "tokens": lambda: Net(
        lambda s, x: s.g(F.gelu(s.f(s.n(x.flatten(2).mT)))).mT.unflatten(2, (8, 8)) + x,
        n=nn.LayerNorm(8),
        f=nn.Linear(8, 12),
        g=nn.Linear(12, 8),
    ),
    "gated tokens": lambda: Net(
        lambda s, x: s.c(F.silu(s.a(t := x.flatten(2).mT)) * s.b(t)).mT.unflatten(2, (8, 8)) + x,
        a=nn.Linear(8, 12),
        b=nn.Linear(8, 12, bias=False),
        c=nn.Linear(12, 8),
    ),
    "attention": lambda: two(
        lambda s, x: s.b(F.relu(s.a(s.m(*[x.flatten(2).mT] * 3)[0].mT.unflatten(2, x.shape[2:])))),
        m=nn.MultiheadAttention(8, 2, batch_first=True),
    ),
    "a recurrent layer": lambda: two(
        lambda s, x: s.b(F.relu(s.a(s.r(x.flatten(2).mT)[0].mT.unflatten(2, x.shape[2:])))),
        r=nn.LSTM(8, 8, batch_first=True),
    ),
    "deformable convolution": lambda: two(
        lambda s, x: s.b(F.relu(s.a(s.d(x, s.o(x))))), o=conv(8, 18), d=ops.DeformConv2d(8, 8, 3, padding=1)
    ),
    # statistics, modes, types
    "SyncBatchNorm": lambda: two(lambda s, x: s.b(F.relu(s.n(s.a(x)))), n=nn.SyncBatchNorm(12)),
    "BatchNorm without affine": lambda: two(
        lambda s, x: s.m(s.b(F.relu(s.n(s.a(x))))),
        n=nn.BatchNorm2d(12, affine=False),
        m=nn.BatchNorm2d(8, affine=False),
    ),
    "BatchNorm without bias": lambda: two(
        lambda s, x: s.m(s.b(F.relu(s.n(s.a(x))))), n=nn.BatchNorm2d(12, bias=False), m=nn.BatchNorm2d(8, bias=False)
    ),
    "BatchNorm without statistics": lambda: two(
        lambda s, x: s.m(s.b(F.relu(s.n(s.a(x))))),
        n=nn.BatchNorm2d(12, track_running_stats=False),
        m=nn.BatchNorm2d(8, track_running_stats=False),
    ),
    "frozen BatchNorm": lambda: two(lambda s, x: s.b(s.n(s.a(x))), n=ops.FrozenBatchNorm2d(12)),
    "dropout": lambda: two(lambda s, x: s.b(s.p(F.dropout(s.a(x), 0.5, s.training))), p=nn.Dropout2d(0.5)),
    "a branch that only training runs": lambda: two(
        lambda s, x: s.b(F.relu(s.a(x))) + (s.c(x) if s.training else 0), c=conv()
    ),
    "frozen layers": lambda: changed(two(), lambda body: body.a.requires_grad_(False)),
    "buffers in forward": lambda: changed(
        two(lambda s, x: s.b(F.relu(s.a((x - s.mean) / s.std)))),
        lambda body: body.register_buffer("mean", torch.rand(8, 1, 1)),
        lambda body: body.register_buffer("std", 1 + torch.rand(8, 1, 1), persistent=False),
    ),
    "a hook on a layer": lambda: changed(two(), hooked("a", lambda layer, inputs, output: 2 * output)),
    "a hook that mixes channels": lambda: changed(
        two(lambda s, x: s.b(s.p(s.a(x))), p=nn.ReLU()), hooked("p", lambda layer, inputs, output: output.flip(1))
    ),
    "a hook before a block": lambda: changed(
        two(), lambda body: body.register_forward_pre_hook(lambda layer, inputs: (inputs[0] * 2,))
    ),
    "a hook on a block": lambda: changed(two(), hooked("", lambda layer, inputs, output: output + 1)),
    "a hook before a layer": lambda: changed(
        two(), lambda body: body.b.register_forward_pre_hook(lambda layer, inputs: (inputs[0] + 1,))
    ),
    "a value kept as an attribute": lambda: two(lambda s, x: s.b(keep(s, F.relu(s.a(x))))),
    "work in place on the input": lambda: two(lambda s, x: s.b(F.relu(s.a(x.mul_(2))))),
    "a choice by values": lambda: two(lambda s, x: s.b(s.a(x)) if x.mean() < 1e9 else x),
    "a choice by shapes": lambda: two(lambda s, x: s.b(F.relu(s.a(x))) if x.shape[-1] > 4 else x),
}


def keep(body, value):
    body.kept = value
    return value


def iadd(x, y):
    x += y
    return x


def forward(s, x):
    return s.head(s.body(s.stem(x)))


def trained(s, x):
    """Two outputs in training, one otherwise."""
    y = s.stem(x)
    return (s.head(s.body(y)), s.aux(y)) if s.training else s.head(s.body(y))


def whole(run, **parts):
    return Net(run, **{"stem": conv(3), "body": two(), "head": head()} | parts)


def wrapped(wrap):
    return wrap(around(two()))


class Silent(Net):
    """One whose `train` returns nothing, as that of many published backbones that freeze their BatchNorms."""

    def train(self, mode=True):
        super().train(mode)


WHOLES = {
    "a train that returns nothing": lambda: Silent(
        forward, stem=conv(3), body=two(lambda s, x: s.b(F.relu(s.n(s.a(x)))), n=nn.BatchNorm2d(12)), head=head()
    ),
    "auxiliary head": lambda: whole(trained, aux=head()),
    "a dict of outputs": lambda: whole(
        lambda s, x: (lambda y: {"out": s.head(s.body(y)), "aux": s.aux(y)})(s.stem(x)), aux=head()
    ),
    "a tuple of outputs": lambda: whole(lambda s, x: (lambda y: (s.head(s.body(y)), y))(s.stem(x))),
    "a default input": lambda: Scaled(forward, stem=conv(3), body=two(), head=head()),
    "work in place on images": lambda: whole(lambda s, x: forward(s, x.mul_(2))),
    "two inputs": lambda: Pair(forward, stem=conv(3), body=two(), head=head()),
    "a body called by keyword": lambda: whole(
        lambda s, x: s.head(s.body(x=s.stem(x))), body=two(lambda s, x: s.b(s.a(x)))
    ),
    "a hook on the network": lambda: changed(around(two()), hooked("", lambda net, inputs, output: output * 2)),
    "a hook before the network": lambda: changed(
        around(two()), lambda net: net.register_forward_pre_hook(lambda net, inputs: (inputs[0] * 2,))
    ),
    "half": lambda: around(two()).half(),
    "bfloat16": lambda: around(two(lambda s, x: s.b(F.relu(s.n(s.a(x)))), n=nn.BatchNorm2d(12))).bfloat16(),
    "double": lambda: around(two()).double(),
    "channels last": lambda: around(two()).to(memory_format=torch.channels_last),
    "DataParallel": lambda: wrapped(nn.DataParallel),
    "compiled": lambda: wrapped(partial(torch.compile, backend="eager")),
    "traced by fx": lambda: wrapped(torch.fx.symbolic_trace),
    "a part without gradients": lambda: whole(lambda s, x: s.head(s.body(no_grad(s.stem, x)))),
}


def no_grad(layer, x):
    with torch.no_grad():
        return layer(x)


NETWORKS = {name: lambda body=body: around(body()) for name, body in BODIES.items()} | WHOLES


def resnet(block, **options):
    return zoo.ResNet(block, [1, 1, 1, 1], num_classes=5, **options)


def vgg():
    features = zoo.vgg.make_layers([8, "M", 16, "M", 24], batch_norm=True)
    with torch.device("meta"):  # its linear layers have 120 million parameters
        net = zoo.VGG(features, num_classes=5, init_weights=False)
    for place, size in ((0, (24 * 49, 16)), (3, (16, 16)), (6, (16, 5))):
        net.classifier[place] = nn.Linear(*size)
    return net


def alexnet():
    net = zoo.AlexNet(num_classes=5)
    net.classifier[1], net.classifier[4], net.classifier[6] = nn.Linear(9216, 16), nn.Linear(16, 16), nn.Linear(16, 5)
    return net


def efficientnet():
    layer, fused = zoo.efficientnet.MBConvConfig, zoo.efficientnet.FusedMBConvConfig
    first = [fused(1, 3, 1, 8, 8, 1), fused(4, 3, 2, 8, 16, 2)]
    return zoo.EfficientNet([*first, layer(4, 3, 2, 16, 24, 2), layer(6, 5, 1, 24, 24, 1)], 0.2, num_classes=5)


def mobilenet_v3():
    layer = partial(zoo.mobilenetv3.InvertedResidualConfig, width_mult=1.0)
    first = [layer(16, 3, 16, 16, True, "RE", 2, 1), layer(16, 5, 40, 24, True, "HS", 2, 1)]
    return zoo.MobileNetV3([*first, layer(24, 3, 48, 24, False, "HS", 1, 2)], last_channel=64, num_classes=5)


def convnext():
    block = zoo.convnext.CNBlockConfig
    return zoo.ConvNeXt([block(8, 16, 1), block(16, 24, 2), block(24, None, 1)], layer_scale=1.0, num_classes=5)


def vit():
    net = zoo.VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5)
    nn.init.normal_(net.heads.head.weight)  # torchvision begins with zeros, which hide what comes before
    return net


def swin(**parts):
    return zoo.SwinTransformer([2, 2], 8, [2, 1], [2, 4], [2, 2], num_classes=5, **parts)


def swin_v2():
    parts = zoo.swin_transformer
    return swin(block=parts.SwinTransformerBlockV2, downsample_layer=parts.PatchMergingV2)


def backbone():
    """Features for segmentation, at two depths."""
    features = mobilenet_v3().features
    return Net(lambda s, x: (lambda y: {"aux": y, "out": s.back(y)})(s.front(x)), front=features[:3], back=features[3])


# torchvision's classes at their smallest: name -> (network, pixels, neighbourhoods)
FAMILIES = {
    "alexnet": (alexnet, 64, ["features.0:features.2", "features.6", "classifier.1:classifier.4"]),
    "convnext": (convnext, 32, ["features.0", "features.1.0", "features.3:features.5"]),
    "densenet": (
        lambda: zoo.DenseNet(8, (2, 2), 8, num_classes=5),
        32,
        ["features.denseblock1.denselayer1.conv1", "features.transition1:features.denseblock2"],
    ),
    "efficientnet": (efficientnet, 32, ["features.1", "features.2:features.3", "features.4.0"]),
    "googlenet": (
        lambda: zoo.GoogLeNet(5, aux_logits=False, init_weights=False),
        32,
        ["conv1:maxpool1", "inception3a", "inception3b:maxpool3"],
    ),
    "inception_v3": (
        lambda: zoo.Inception3(5, aux_logits=False, init_weights=False),
        75,
        ["Mixed_5b:Mixed_5d", "Mixed_7c"],
    ),
    "maxvit": (
        lambda: zoo.MaxVit((32, 32), 8, 4, [8, 16], [1, 1], 4, 0.1, num_classes=5),
        32,
        ["stem", "blocks.0", "blocks.1.layers.0.layers.MBconv"],
    ),
    "mnasnet": (lambda: zoo.MNASNet(0.2, 5), 32, ["layers.8:layers.9", "layers.10.1"]),
    "mobilenet_v2": (lambda: zoo.MobileNetV2(5, 0.25), 32, ["features.1", "features.3:features.5", "features.11"]),
    "mobilenet_v3": (mobilenet_v3, 32, ["features.1", "features.2:features.3"]),
    "regnet": (
        lambda: zoo.RegNet(zoo.regnet.BlockParams.from_init_params(4, 8, 8.0, 2.0, 8, se_ratio=0.25), num_classes=5),
        32,
        ["stem", "trunk_output.block1"],
    ),
    "resnet": (lambda: resnet(zoo.resnet.BasicBlock), 32, ["layer1:layer2", "layer3.0"]),
    "wide_resnet": (
        lambda: resnet(zoo.resnet.Bottleneck, width_per_group=16),
        32,
        ["layer1:layer2", "layer3.0"],
    ),
    "resnext": (
        lambda: resnet(zoo.resnet.Bottleneck, groups=4, width_per_group=4),
        32,
        ["layer1:layer2", "layer3.0"],
    ),
    "shufflenet": (
        lambda: zoo.ShuffleNetV2([2, 2, 2], [8, 16, 24, 32, 64], 5),
        32,
        ["conv1", "stage2.0", "stage3:stage4"],
    ),
    "squeezenet": (lambda: zoo.SqueezeNet("1_1", 5), 48, ["features.3:features.5", "features.9"]),
    "swin": (swin, 32, ["features.1.0", "features.2:features.3"]),
    "swin_v2": (swin_v2, 32, ["features.1.0", "features.2:features.3"]),
    "vgg": (vgg, 32, ["features.0:features.2", "features.4", "classifier.0:classifier.3"]),
    "vit": (vit, 32, ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1.mlp"]),
    "lraspp": (
        lambda: zoo.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5),
        32,
        ["backbone.4", "backbone.7:backbone.9"],
    ),
    "fcn": (
        lambda: zoo.segmentation.FCN(backbone(), zoo.segmentation.fcn.FCNHead(24, 5)),
        32,
        ["backbone.back", "classifier"],
    ),
    "deeplab": (
        lambda: zoo.segmentation.DeepLabV3(
            backbone(), zoo.segmentation.deeplabv3.DeepLabHead(24, 5), zoo.segmentation.fcn.FCNHead(24, 5)
        ),
        32,
        ["backbone.front.1", "classifier"],
    ),
}

# multiplications that no function of torch does, by hand: 64 places of four gates, and of 8 filters
BY_HAND = {"a recurrent layer": 64 * 4 * 8 * (8 + 8), "deformable convolution": 64 * 8 * 8 * 9}
PARTS = {name: names for name, (_, _, names) in FAMILIES.items()}
EXAMPLES = {name: (2, 3, pixels, pixels) for name, (_, pixels, _) in FAMILIES.items()}
PAIR = {"two inputs": "Pair.* 'z'"}
ONE_TENSOR = PAIR | {
    "a body called by keyword": "'body'",
    "compiled": "give its '_orig_mod'",
    "DataParallel": "give its 'module'",
    "traced by fx": "'body', which is run 0",
}
UNTRACEABLE = dict.fromkeys(["a choice by values", "a choice by shapes", "deformable convolution"], r"module \(=\w+\)")
REFUSED = {  # by operation and network, what the error names
    "split": ONE_TENSOR,
    "narrow": ONE_TENSOR
    | UNTRACEABLE
    | {
        "tied weights": "layers 'a' and 'b' share",
        "tied biases": "layers 'a' and 'b' share",
        "tied inner weights": "layers 'b' and 'c' share",
        "tied BatchNorm": "layers 'n' and 'm' share",
        "an alias of a parameter": "layers '' and 'a' share",
        "a layer applied twice": r"called 2 times \('c'|called 2 times \(c",
        "a BatchNorm applied twice": r"called 2 times \(n",
        "spectral norm": "layer 'a' computes",
        "spectral norm by a hook": "layer 'b' computes",
        "weight norm": "layer 'b' computes",
        "pruned by a mask": "layer 'b' computes",
        "a parametrized bias": "layer 'a' computes",
        "standardized in forward": r"mean \(a",
        **dict.fromkeys(["doubled in forward", "tripled in its own convolution"], r"conv2d \(b"),
        "functional convolutions": "conv2d",
        "a ParameterList": "conv2d",
        "a weight read outside its layer": r"called 2 times \(b",
        "a weight read outside its layer, as a number": r"another output .*\(a",
        "a weight read by another layer": r"conv2d",
        "a bias read outside its layer": "view .*sub",
        "statistics read outside their layer": r"another output .*\(a",
        "a forward of its own": r"another output .*\(a",
        "a hook that mixes channels": r"another output .*\(a",
        "a low-rank correction": "view_as",
        "a learned scale inside": "a tensor outside a layer",
        "frozen BatchNorm": "a tensor outside a layer",
        "GroupNorm": r"GroupNorm \(n",
        "InstanceNorm": r"InstanceNorm2d \(n",
        "a norm over channels": "normalize",
        "a softmax over channels": "softmax",
        "PReLU": r"PReLU \(p",
        "grouped convolution": r"Conv2d \(c",
        "depthwise convolution with a multiplier": r"Conv2d \(c",
        "transposed convolution": r"ConvTranspose2d \(c",
        "channel shuffle": "unflatten",
        "a slice of channels": "getitem",
        "halves of channels": "chunk|cat",
        "a value joined with itself": "cat",
        "a linear layer over positions": r"Linear on the last dimension \(f",
        "resnext": r"Conv2d \(conv2",
    },
    "gates": UNTRACEABLE
    | {
        "tied weights": "'body.a' and 'body.b'",
        "an alias of a parameter": "'body' and 'body.a'",
        "standardized in forward": r"mean \(body.a",
        "functional convolutions": r"conv2d \(body",
        "a ParameterList": r"conv2d \(body",
        "a weight read outside its layer": r"called 2 times \(body.b",
        "a weight read outside its layer, as a number": r"another output .*\(stem",
        "two inputs": r"Pair|'z'",
        "DataParallel": ONE_TENSOR["DataParallel"],
        "compiled": ONE_TENSOR["compiled"],
    },
    "cost": PAIR,
    "solve": ONE_TENSOR
    | UNTRACEABLE
    | dict.fromkeys(["half", "bfloat16", "double"], r"'stem.weight' in \w+")
    | dict.fromkeys(["standardized in forward", "doubled in forward"], "'body'.* ends in conv2d")
    | {"tripled in its own convolution": "'body'.* ends in conv2d"}
    | dict.fromkeys(["functional convolutions", "a ParameterList"], "'body'.* ends in conv2d")
    | dict.fromkeys(["spectral norm by a hook", "pruned by a mask"], "layer 'b' computes")
    | dict.fromkeys(["BatchNorm without statistics", "a hook before a block", "a hook on a block"], "'body'.* hooks")
    | dict.fromkeys(["a forward of its own", "a hook before a layer"], "layer 'b' .* hooks, own forward")
    | {
        "tied weights": "layer 'b' shares weights with a",
        "a layer applied twice at the end": "layer 'c' is applied 2 times",
        "a weight read outside its layer": "layer 'b' is applied 2 times",
        "dilation, stride and upsampling": "'body'.* ends in interpolate",
        "tokens": "'body'.* ends in unflatten",
        "gated tokens": "'body'.* ends in unflatten",
    },
}
