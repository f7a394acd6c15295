"use strict";
// A file that is chosen fills the field that its data-into names.
// Keys: a letter presses, follows or focuses what carries it in data-key; Ctrl+Enter submits; Escape leaves a field.
const inField = (element) => element.matches("input, textarea, select");

document.addEventListener("change", async (event) => {
  const into = event.target.dataset?.into, file = event.target.files?.[0];
  if (into && file) document.getElementById(into).value = await file.text();
});

document.addEventListener("keydown", (event) => {
  const at = event.target instanceof Element ? event.target : document.body;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    at.closest("form")?.querySelector("[data-submit]")?.click();
    return;
  }
  if (event.key === "Escape" && inField(at)) {
    at.blur();
    return;
  }
  if (inField(at) || event.ctrlKey || event.metaKey || event.altKey) return;
  const target = [...document.querySelectorAll("[data-key]")].find((one) => one.dataset.key === event.key);
  if (!target) return;
  event.preventDefault();
  if (inField(target)) {
    target.focus();
    target.select?.();
  } else {
    target.click();
  }
});
