"use strict";

// Theme: system, light or dark; stored if the browser allows it.
const THEMES = { auto: ["light dark", "system"], light: ["light", "light"], dark: ["dark", "dark"] };
const theme = document.getElementById("theme");
let chosen = "auto";
try { chosen = localStorage.getItem("fcnlab-theme") ?? "auto"; } catch { /* a file's page may have no storage */ }

function show(name) {
  chosen = name in THEMES ? name : "auto";
  const [scheme, label] = THEMES[chosen];
  document.documentElement.style.colorScheme = scheme;
  theme.textContent = `Theme: ${label}`;
}

theme.addEventListener("click", () => {
  const names = Object.keys(THEMES);
  show(names[(names.indexOf(chosen) + 1) % names.length]);
  try { localStorage.setItem("fcnlab-theme", chosen); } catch { /* the choice holds for this page only */ }
});
show(chosen);
