// What is better with a script: ids that are copied at a touch, a chart that is read at a point, progress that moves.
"use strict";

document.documentElement.classList.add("scripted");

const copyButtons = () => {
  if (!navigator.clipboard) return;
  for (const ident of document.querySelectorAll("main code.ident")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.setAttribute("aria-label", `Copy ${ident.textContent}`);
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(ident.textContent);
        button.textContent = "Copied";
      } catch {
        window.getSelection().selectAllChildren(ident);
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    ident.after(button);
  }
};

const readCharts = () => {
  for (const chart of document.querySelectorAll("[data-chart]")) {
    const rows = [...chart.parentElement.querySelectorAll("details tbody tr")];
    const points = rows.map((row) => ({
      at: Date.parse(row.querySelector("time").dateTime),
      shown: `${row.querySelector("time").textContent}: ${row.querySelector("data").textContent}`,
    }));
    if (points.length < 2) continue;
    const svg = chart.querySelector("svg");
    const cursor = chart.querySelector(".cursor");
    const reading = chart.querySelector(".reading");
    const [first, last] = [points[0].at, points[points.length - 1].at];
    const read = (event) => {
      const box = svg.getBoundingClientRect();
      const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      const moment = first + share * (last - first);
      const point = points.findLast((each) => each.at <= moment) ?? points[0];
      cursor.setAttribute("d", `M${share * 1000} 0V300`);
      reading.textContent = point.shown;
      reading.hidden = false;
    };
    svg.addEventListener("pointermove", read);
    svg.addEventListener("pointerdown", read);
    svg.addEventListener("pointerleave", () => {
      cursor.setAttribute("d", "");
      reading.hidden = true;
    });
  }
};

const watchProgress = () => {
  const watched = document.querySelector("[data-progress]");
  if (!watched) return;
  const bar = watched.querySelector("progress");
  const text = watched.querySelector(".progress-text");
  const look = async () => {
    try {
      const answer = await fetch(watched.dataset.progress, { headers: { accept: "application/json" } });
      const run = answer.ok ? await answer.json() : { running: false };
      if (!run.running) {
        window.location.reload();
        return;
      }
      bar.value = run.share;
      text.textContent = `${run.checked.toLocaleString("en")} of ${run.total.toLocaleString("en")} events`;
    } catch {
      text.textContent = "The service cannot be reached; trying again.";
    }
    setTimeout(look, 1000);
  };
  look();
};

copyButtons();
readCharts();
watchProgress();
