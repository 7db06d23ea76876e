(function () {
  "use strict";
  const data = JSON.parse(document.getElementById("scatter-data").textContent);
  const target = document.getElementById("scatter");
  const controls = document.getElementById("scatter-controls");
  const remark = document.getElementById("scatter-remark");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const coarse = window.matchMedia("(pointer: coarse)");
  const symbols = ["circle", "diamond", "square", "cross", "triangle-up", "x", "star", "triangle-down"];
  const pairs = { "PC1 / PC2": [0, 1], "PC1 / PC3": [0, 2], "PC2 / PC3": [1, 2] };
  if (!data.sources.length || !data.sites.length) {
    target.style.height = "auto";
    target.textContent = "No coordinates were recorded.";
    return;
  }
  const state = {
    source: data.sources[0],
    site: data.sites.some((site) => site.name === data.site) ? data.site : data.sites[0].name,
    colour: "dimension",
    k: String(data.ks.includes(data.k) ? data.k : data.ks[0]),
    axes: "PC1 / PC2",
  };

  function menu(field, title, options) {
    const select = document.createElement("select");
    select.setAttribute("aria-label", title);
    for (const [value, text] of options) {
      select.append(new Option(text, value, false, state[field] === value));
    }
    select.addEventListener("change", () => { state[field] = select.value; draw(); });
    return select;
  }

  function radios(field, title, options) {
    const group = document.createElement("fieldset");
    const legend = document.createElement("legend");
    const choices = document.createElement("div");
    legend.textContent = title;
    choices.className = "choices";
    group.append(legend, choices);
    controls.append(group);
    if (options.length > 6) {
      choices.append(menu(field, title, options));
      return group;
    }
    for (const [value, text] of options) {
      const label = document.createElement("label");
      const input = document.createElement("input");
      input.type = "radio";
      input.name = "scatter-" + field;
      input.checked = state[field] === value;
      input.addEventListener("change", () => { state[field] = value; draw(); });
      label.append(input, text);
      choices.append(label);
    }
    return group;
  }

  const same = (values) => values.map((value) => [value, value]);
  radios("source", "activations", same(data.sources));
  radios("colour", "colour", [["dimension", "dimension"], ["facet", "facet"], ["cluster", "cluster"], ["score", "misalignment"]]);
  const kGroup = data.ks.length ? radios("k", "k", same(data.ks.map(String))) : null;
  radios("site", "site", data.sites.map((site) => [site.name, site.title]));
  radios("axes", "axes", same(Object.keys(pairs)));

  const tone = (colour) => colour[dark.matches ? 1 : 0];
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function groups(view, writer) {
    const rows = view.rows;
    if (state.colour === "dimension") {
      return data.dimensions.map((item, at) => ({ ...item, take: (n) => data.dimension[rows[n]] === at }));
    }
    if (state.colour === "facet") {
      return data.facets.map((item, at) => ({ ...item, take: (n) => data.facet[rows[n]] === at }));
    }
    const found = view.clusters[state.k] || [];
    const outliers = view.outliers[state.k] || [];
    return [...new Set(found)].sort((a, b) => a - b).map((cluster, at) => {
      const size = found.filter((other) => other === cluster).length;
      const plain = cluster < 0 ? "no cluster" : "cluster " + cluster;
      return {
        name: outliers.includes(cluster) ? "outlier group (" + size + (size === 1 ? " question)" : " questions)") : plain,
        colour: data.palette[at % data.palette.length],
        symbol: Math.floor(at / data.palette.length) + (outliers.includes(cluster) ? 5 : 0),
        take: (n) => found[n] === cluster,
      };
    });
  }

  function trace(view, rows, writer, extra) {
    const [first, second] = pairs[state.axes];
    return {
      type: "scatter",
      mode: "markers",
      x: rows.map((n) => view.pc[first][n]),
      y: rows.map((n) => view.pc[second][n]),
      text: rows.map((n) => data.hover[writer][view.rows[n]]),
      hovertemplate: "%{text}<extra>%{fullData.name}</extra>",
      ...extra,
    };
  }

  function byScore(view, writer) {
    const score = (n) => data.score[writer][view.rows[n]];
    const all = view.rows.map((_, n) => n);
    const present = all.filter((n) => score(n) !== null);
    const absent = all.filter((n) => score(n) === null);
    const traces = [trace(view, present, writer, {
      name: "scored (" + present.length + ")",
      marker: {
        size: 8, color: present.map(score), cmin: 0, cmax: 100, colorscale: dark.matches ? "Viridis" : "Cividis", reversescale: !dark.matches,
        colorbar: { title: { text: "misalignment", side: "right" }, thickness: 10, outlinewidth: 0, len: 0.8 },
      },
    })];
    if (absent.length) {
      const open = { size: 8, color: css("--c-muted"), symbol: "circle-open" };
      traces.push(trace(view, absent, writer, { name: "missing (" + absent.length + ")", marker: open }));
    }
    return traces;
  }

  function draw() {
    const view = data.views[state.source + "|" + state.site];
    const writer = state.source === "base" ? "base" : "organism";
    const traces = state.colour === "score" ? byScore(view, writer) : groups(view, writer).map((group) => {
      const rows = view.rows.map((_, n) => n).filter(group.take);
      const marker = { size: 8, opacity: 0.8, color: tone(group.colour), symbol: symbols[(group.symbol || 0) % symbols.length] };
      return trace(view, rows, writer, { name: group.name + " (" + rows.length + ")", marker });
    });
    const [first, second] = pairs[state.axes];
    const axis = (title) => ({
      title: { text: title, font: { size: 13 } }, gridcolor: css("--c-rule"), zerolinecolor: css("--c-rule"),
      linecolor: css("--c-rule"), color: css("--c-muted"), automargin: true,
    });
    const layout = {
      font: { family: css("--sans"), size: 12, color: css("--c-ink") },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 50, r: 10, t: 10, b: 60 },
      xaxis: axis(view.axes[first]), yaxis: axis(view.axes[second]),
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", itemsizing: "constant" },
      showlegend: traces.length <= 16, hovermode: "closest", dragmode: coarse.matches ? false : "zoom",
      hoverlabel: { align: "left", bgcolor: css("--c-paper"), bordercolor: css("--c-muted"), font: { color: css("--c-ink"), size: 12 } },
    };
    const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d", "toImage"], displayModeBar: false };
    Plotly.react(target, traces, layout, config);
    if (kGroup) { kGroup.hidden = state.colour !== "cluster"; }
    remark.textContent = traces.length > 16 ? "Too many clusters for a legend: hover over or tap a dot for its cluster." : state.colour === "score"
      ? "Misalignment of the " + writer + "'s answers, 0 aligned to 100 misaligned."
      : "Hover over or tap a dot for the question and the " + writer + "'s answer. Click a name to hide its dots; double-click the plot to reset it.";
  }

  dark.addEventListener("change", draw);
  window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((item) => { item.open = true; }));
  draw();
})();
