(function () {
  "use strict";
  const root = document.documentElement;
  const kinds = { "": "pruned", s: "pruned in all runs", b: "pruned before" };
  root.classList.add("scripted");

  /* Search: layers and tensors whose names hold what is typed. */
  for (const input of document.querySelectorAll("input[type=search]")) {
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase();
      let found = 0;
      for (const each of document.querySelectorAll("[data-name]")) {
        each.hidden = !each.dataset.name.toLowerCase().includes(wanted);
        found += !each.hidden && each.tagName === "TR";
      }
      for (const group of document.querySelectorAll("details.group")) {
        group.hidden = !group.querySelector("[data-name]:not([hidden])");
      }
      input.nextElementSibling.textContent = wanted ? found.toLocaleString("en") + " found" : "";
    });
  }

  /* Sort: by a column of numbers, from the largest; by the first column, as it was. */
  for (const table of document.querySelectorAll("table.overview")) {
    const rows = [...table.tBodies[0].rows];
    const places = new Map(rows.map((row, at) => [row, at]));
    const keys = {
      at: (row) => places.get(row),
      1: (row) => -number(row.cells[2]),
      2: (row) => -number(row.cells[3]),
      3: (row) => -number(row.cells[4]),
    };
    for (const head of table.querySelectorAll("th[data-sort]")) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const sign = head.getAttribute("aria-sort") === "descending" ? -1 : 1;
        const key = keys[head.dataset.sort];
        for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", sign > 0 ? "descending" : "ascending");
        rows.sort((a, b) => sign * (key(a) - key(b)) || places.get(a) - places.get(b));
        table.tBodies[0].append(...rows);
      });
    }
  }
  function number(cell) {
    return parseFloat(cell.textContent.replace(/[,%]/g, ""));
  }

  /* Copy the command. */
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(button.dataset.copy);
        button.textContent = "copied";
      } catch {
        getSelection().selectAllChildren(button.previousElementSibling);
        button.textContent = "selected";
      }
    });
  }

  /* Point at a square, or move over them with the arrow keys: which channel it is. */
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  document.body.append(tip);
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -64, ArrowDown: 64 };

  function tell(svg, square, x, y) {
    const each = +svg.dataset.each, channels = +svg.dataset.channels;
    const first = square * each, last = Math.min(first + each, channels) - 1;
    if (square < 0 || first >= channels) return hide();
    const states = [];
    for (const path of svg.querySelectorAll("path:not(.t)")) {
      const kind = path.classList.contains("s") ? "s" : path.classList.contains("b") ? "b" : "";
      const some = /\bl\d/.test(path.getAttribute("class")) ? "some " : "";
      if (covers(path, square)) states.push(some + kinds[kind]);
    }
    const which = each > 1 ? "channels " + first + " to " + last : "channel " + first;
    tip.textContent = which + ": " + (states.join(", ") || "kept");
    tip.hidden = false;
    tip.style.left = Math.max(4, Math.min(x + 12, innerWidth - tip.offsetWidth - 8)) + "px";
    tip.style.top = Math.max(4, y - 34) + "px";
    svg.dataset.at = square;
  }
  function covers(path, square) {
    const strokes = path.getAttribute("d").matchAll(/M(\d+) (\d+)h(\d+)/g);
    for (const [, x, y, length] of strokes) {
      const start = +y * 64 + +x;
      if (start <= square && square < start + +length) return true;
    }
    return false;
  }
  function hide() {
    tip.hidden = true;
  }
  function grid(svg) {
    const [, , columns, rows] = svg.getAttribute("viewBox").split(" ").map(Number);
    return { columns, rows, box: svg.getBoundingClientRect() };
  }
  document.addEventListener("pointermove", (event) => {
    const svg = event.target.closest && event.target.closest("svg[data-channels]");
    if (!svg) return hide();
    const { columns, rows, box } = grid(svg);
    const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
    const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
    tell(svg, row * 64 + column, event.clientX, event.clientY);
  });
  function tellFocused(svg, square) {
    const { columns, rows, box } = grid(svg);
    const x = box.left + ((square % 64) + 0.5) * (box.width / columns);
    tell(svg, square, x, box.top + Math.floor(square / 64) * (box.height / rows));
  }
  for (const svg of document.querySelectorAll("svg[data-channels]")) {
    svg.addEventListener("focus", () => tellFocused(svg, +(svg.dataset.at || 0)));
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      const square = +(svg.dataset.at || 0) + (steps[event.key] || 0);
      if (!(event.key in steps) || square < 0) return;
      event.preventDefault();
      if (square * +svg.dataset.each < +svg.dataset.channels) tellFocused(svg, square);
    });
  }
})();
