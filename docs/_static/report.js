// One button opens or folds all code of a notebook.
document.addEventListener("DOMContentLoaded", () => {
  const cells = [...document.querySelectorAll("details.hide")];
  const title = document.querySelector("article h1");
  if (!cells.length || !title) return;
  const button = Object.assign(document.createElement("button"), { className: "code-switch", textContent: "Show all code" });
  button.onclick = () => {
    const open = cells.some((cell) => !cell.open);
    cells.forEach((cell) => (cell.open = open));
    button.textContent = open ? "Fold all code" : "Show all code";
  };
  title.after(button);
});
