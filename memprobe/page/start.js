// The first turn of the report: everything but the figures, which wait for plotly.
"use strict";

watchTheme(() => {
  keepHash();
  if (window.Plotly) render();
});
setTheme(new URLSearchParams(location.hash.slice(1)).get("theme") ?? "auto");
buildControls();
buildExplorer();
showRun();
state = stateFromHash();
render();
performance.mark("table");
