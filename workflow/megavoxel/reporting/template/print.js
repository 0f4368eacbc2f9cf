// Paper cannot be clicked: what is folded up is open while the page prints.

let opened = [];

addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const part of opened) part.open = true;
});

addEventListener("afterprint", () => {
  for (const part of opened) part.open = false;
});
