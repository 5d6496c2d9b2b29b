// The first turn of the page: everything but the figures, which wait for plotly.
"use strict";

watchTheme(() => {
  keepHash();
  if (window.Plotly) render();
});
setTheme(new URLSearchParams(location.hash.slice(1)).get("theme") ?? "auto");
state = stateFromHash();
buildControls();
buildExplorer();
showTop();
performance.mark("table");
