"""Provenance of a record: code, data, packages and hardware."""

import json
import os
import sys

import torch
from joblib import cpu_count

from nkdlib.compendium.provenance import provenance


def test_provenance_names_code_data_packages_and_hardware_and_no_one():
    record = provenance({"seeds": 5, "data": f"{os.sep}home{os.sep}someone{os.sep}photos"}, "d1", {"wall": 1.23456})
    text = json.dumps(record)
    assert record["parameters"] == {"seeds": 5, "data": "photos"}
    assert record["seeds"] == 5 and record["data"] == "d1" and record["seconds"] == {"wall": 1.235}
    assert record["packages"]["torch"] == torch.__version__.split("+")[0]
    assert record["hardware"]["cores"] == cpu_count() and record["python"] in sys.version
    assert len(record["commit"]) == 40 and isinstance(record["dirty"], bool)
    for private in (os.uname().nodename, os.path.expanduser("~") + os.sep, "someone"):
        assert private not in text
