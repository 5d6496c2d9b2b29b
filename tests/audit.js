// What is wrong with what a page shows: texts cut, beyond the edge or faint, looks that come twice, what has no name.
() => {
  const wrong = [];
  const seen = (node) => node.getClientRects().length && getComputedStyle(node).visibility !== 'hidden';
  const room = document.querySelector('.room:not([hidden])') ?? document.querySelector('main');
  const edge = document.documentElement.clientWidth;

  // Every text of a chart lies in its canvas.
  for (const text of room.querySelectorAll('.js-plotly-plot .main-svg text')) {
    if (!seen(text) || !text.textContent.trim() || text.closest('.hoverlayer')) continue;
    const [box, canvas] = [text.getBoundingClientRect(), text.closest('.js-plotly-plot').getBoundingClientRect()];
    if (box.left < canvas.left - 2 || box.right > canvas.right + 2 || box.top < canvas.top - 2 || box.bottom > canvas.bottom + 2) wrong.push(`chart text ${text.textContent}`);
  }
  // No number is cut, and on a phone none lies beyond the edge.
  for (const node of [...room.querySelectorAll('td, th'), ...document.querySelectorAll('#answer p')]) {
    if (!seen(node) || node.closest('.tokens') || node.matches('.prompt, .answer, .popularity')) continue;
    const box = node.getBoundingClientRect();
    if (node.scrollWidth > node.clientWidth + 1 && getComputedStyle(node).overflow !== 'visible') wrong.push(`cut ${node.textContent}`);
    if (edge < 700 && (box.left < 0 || box.right > edge + 1)) wrong.push(`beyond the edge ${node.textContent}`);
  }
  // Contrast: 4.5 for texts, 3 for what is drawn.
  const parts = (colour) => colour.match(/[\d.]+/g).map(Number);
  const light = (colour) => parts(colour).slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (one, other) => { const [a, b] = [light(one), light(other)].sort(); return (b + 0.05) / (a + 0.05); };
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (parts(colour)[3] !== 0 || parts(colour).length === 3) return colour;
    }
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !seen(node) || node.closest('script, style, svg, option, button:disabled')) continue;
    const style = getComputedStyle(node);
    if (contrast(style.color, ground(node)) < 4.5) wrong.push(`faint ${walker.currentNode.textContent.trim().slice(0, 40)} ${style.color}`);
  }
  const page = getComputedStyle(document.body).backgroundColor;
  const rgb = (hex) => `rgb(${[1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(',')})`;
  for (const canvas of room.querySelectorAll('.js-plotly-plot')) {
    if (!seen(canvas) || !canvas.data.length) continue;
    const name = canvas.closest('figure').dataset.figure;
    const lines = canvas.data.filter((t) => t.meta?.role === 'line' && t.type === 'scatter' && (t.mode ?? '').includes('lines') && !t.meta.column?.includes('log'));
    const looks = lines.map((t) => `${t.line.color} ${t.line.dash ?? ''}`);
    if (new Set(looks).size < looks.length) wrong.push(`${name}: a colour and dash twice`);
    for (const t of lines) if (/^#/.test(t.line.color) && contrast(rgb(t.line.color), page) < 3) wrong.push(`${name}: faint line ${t.line.color}`);
    // Those who hear the page are told what a chart shows.
    if (canvas.getAttribute('role') !== 'img' || !/\w+\. .*CSV gives the numbers/.test(canvas.getAttribute('aria-label'))) wrong.push(`${name}: no label`);
  }
  // Every control has a name, and is reached by keyboard.
  for (const node of document.querySelectorAll('button, input, select, [role=region], [role=tabpanel]')) {
    if (!seen(node)) continue;
    const named = node.getAttribute('aria-label') || document.getElementById(node.getAttribute('aria-labelledby'))?.textContent
      || node.textContent.trim() || node.closest('label')?.textContent.trim();
    if (!named) wrong.push(`no name: ${node.outerHTML.slice(0, 80)}`);
    if (node.tabIndex < 0 && !node.matches('[role=tab], [role=tabpanel], .list .scroll')) wrong.push(`not reached: ${node.outerHTML.slice(0, 80)}`);
  }
  return [...new Set(wrong)];
}
