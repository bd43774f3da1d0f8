/* The loss chart: raw and smoothed values, linear or logarithmic, with values under the mouse pointer. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const SVG = "http://www.w3.org/2000/svg";
    const HEIGHT = 280;
    const MARGIN = { left: 58, right: 14, top: 12, bottom: 26 };

    const settings = { smoothing: 0.9, isLog: false };

    function draw(name, attributes, ...children) {
        const made = document.createElementNS(SVG, name);
        for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
        made.append(...children);
        return made;
    }
    lt.svg = draw;

    // --- numbers ----------------------------------------------------------------------------------
    lt.smoothing = () => settings.smoothing;

    /** Exponential moving average of the losses, corrected at the start (as Adam does): [value, …]. */
    lt.smoothed = (points, weight) => {
        let sum = 0;
        let share = 0;
        return points.map(([, value]) => {
            if (value !== null) {
                sum = weight * sum + (1 - weight) * value;
                share = weight * share + (1 - weight);
            }
            return share ? sum / share : 0;
        });
    };

    /** [low, high] of the axis; outliers at the top are cut off, so that they do not flatten the curve. */
    function rangeOf(values) {
        const sorted = values.filter((value) => value !== null).sort((a, b) => a - b);
        if (!sorted.length) return [0, 1];
        const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
        const high = sorted.length > 50 ? at(0.99) : sorted[sorted.length - 1];
        return [sorted[0], Math.max(high, sorted[0] + 1e-9)];
    }

    function linearTicks(low, high, wanted) {
        const rough = (high - low) / wanted || 1;
        const unit = 10 ** Math.floor(Math.log10(rough));
        const step = unit * [1, 2, 5, 10].find((factor) => factor * unit >= rough);
        const first = Math.ceil(low / step);
        const count = Math.floor(high / step + 1e-9) - first + 1;
        return Array.from({ length: Math.max(0, count) }, (_, n) => (first + n) * step);
    }

    function logTicks(low, high) {
        const all = [];
        for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
            for (const factor of [1, 2, 5]) all.push(factor * 10 ** power);
        }
        const within = all.filter((tick) => tick >= low && tick <= high);
        return within.length >= 3 ? within : linearTicks(low, high, 4).filter((tick) => tick > 0);
    }

    const short = (value) => String(Number(value.toPrecision(3)));

    // --- drawing ----------------------------------------------------------------------------------
    /** Scales for a curve in a box of `width` pixels: step → x, loss → y, and the ticks. */
    function scalesOf(run, width) {
        const fixed = Object.keys(FIXED).flatMap((name) => fixedLoss(run, name)).map(([, loss]) => loss);
        const ofSteps = rangeOf(run.loss.map(([, loss]) => loss));
        const lowest = Math.min(ofSteps[0], ...fixed);
        const highest = Math.max(ofSteps[1], ...fixed); // few and exact, so none of them is an outlier
        const isLog = settings.isLog && lowest > 0;
        const pad = (highest - lowest) * 0.08;
        const low = isLog ? lowest / 1.1 : Math.max(0, lowest - pad);
        const high = isLog ? highest * 1.1 : highest + pad;
        const bend = isLog ? Math.log : (value) => value;
        const lastStep = Math.max(run.loss[run.loss.length - 1][0], 2);
        const inner = { width: width - MARGIN.left - MARGIN.right, height: HEIGHT - MARGIN.top - MARGIN.bottom };
        return {
            width,
            lastStep,
            x: (step) => MARGIN.left + (inner.width * (step - 1)) / (lastStep - 1),
            y: (loss) => MARGIN.top + inner.height * (1 - (bend(Math.max(loss, low)) - bend(low)) / (bend(high) - bend(low))),
            yTicks: isLog ? logTicks(low, high) : linearTicks(low, high, 5),
            xTicks: linearTicks(1, lastStep, Math.max(3, Math.floor(width / 110))).filter(Number.isInteger),
        };
    }

    const path = (points, scales) => points
        .filter(([, value]) => value !== null)
        .map(([step, value], n) => `${n ? "L" : "M"}${scales.x(step).toFixed(1)},${scales.y(value).toFixed(1)}`)
        .join("");

    function axes(scales) {
        const right = scales.width - MARGIN.right;
        const bottom = HEIGHT - MARGIN.bottom;
        return draw("g", { class: "lt-axes" },
            ...scales.yTicks.flatMap((tick) => [
                draw("line", { x1: MARGIN.left, x2: right, y1: scales.y(tick), y2: scales.y(tick) }),
                draw("text", { x: MARGIN.left - 10, y: scales.y(tick) + 4, "text-anchor": "end" }, short(tick)),
            ]),
            ...scales.xTicks.map((tick) =>
                draw("text", { x: scales.x(tick), y: bottom + 18, "text-anchor": "middle" }, tick.toLocaleString("en-US"))),
        );
    }

    /** Dotted lines at the ends of epochs, thinned to what fits. */
    function epochMarks(run, scales) {
        const ends = run.events.filter((event) => event.kind === "EpochDone");
        const every = Math.ceil((ends.length * 26) / scales.width) || 1;
        const marks = ends.filter((event) => event.epoch % every === 0).map((event) => draw("g", {},
            draw("line", { x1: scales.x(event.step), x2: scales.x(event.step), y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }),
            draw("text", { x: scales.x(event.step) - 4, y: MARGIN.top + 10, "text-anchor": "end" }, String(event.epoch))));
        return draw("g", { class: "lt-epochs" }, ...marks);
    }

    /** The losses with the same noise every time, by their names: [CSS class, word]. */
    const FIXED = { validation_loss: ["validation", "validation loss"], steady_loss: ["steady", "steady loss"] };

    /** [step, value] of every fixed loss of a name, at the last step of its epoch. */
    function fixedLoss(run, name) {
        const done = run.events.filter((event) => event.kind === "EpochDone").map((event) => [event.epoch, event.step]);
        const ends = Object.fromEntries([[0, 1], ...done]);
        return run.events.filter((event) => event.kind === "Measured" && event.epoch in ends)
            .map((event) => [ends[event.epoch], event.values[name]])
            .filter(([, value]) => typeof value === "number");
    }

    function fixedLine(run, name, scales) {
        const [style, word] = FIXED[name], points = fixedLoss(run, name);
        return draw("g", { class: `lt-${style}` },
            draw("path", { d: path(points, scales) }),
            ...points.map(([step, value]) => draw("circle", { cx: scales.x(step), cy: scales.y(value), r: 3.5 },
                draw("title", {}, `${word} ${value.toFixed(4)} after step ${step}`))));
    }

    function chartOf(run, width) {
        const scales = scalesOf(run, width);
        const smooth = lt.smoothed(run.loss, settings.smoothing);
        const strong = run.loss.map(([step], n) => [step, smooth[n]]);
        const last = strong[strong.length - 1];
        const svg = draw("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": "Loss by step" },
            draw("clipPath", { id: "lora_train_clip" },
                draw("rect", { x: MARGIN.left, y: MARGIN.top - 4, width: width - MARGIN.left - MARGIN.right + 6, height: HEIGHT - MARGIN.top - MARGIN.bottom + 8 })),
            axes(scales),
            epochMarks(run, scales),
            draw("g", { "clip-path": "url(#lora_train_clip)" },
                draw("path", { class: "lt-raw", d: path(run.loss, scales) }),
                draw("path", { class: "lt-smooth", d: path(strong, scales) }),
                ...Object.keys(FIXED).map((name) => fixedLine(run, name, scales)),
                draw("circle", { class: "lt-now", cx: scales.x(last[0]), cy: scales.y(last[1]), r: 3.5 })),
        );
        return { svg, scales, smooth };
    }

    // --- values under the mouse pointer ------------------------------------------------------------
    function nearest(points, step) {
        let low = 0;
        let high = points.length - 1;
        while (high - low > 1) {
            const middle = (low + high) >> 1;
            if (points[middle][0] < step) low = middle;
            else high = middle;
        }
        return Math.abs(points[low][0] - step) <= Math.abs(points[high][0] - step) ? low : high;
    }

    function addReading(container, run, { svg, scales, smooth }) {
        const line = draw("line", { class: "lt-cross", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom });
        const dot = draw("circle", { class: "lt-dot", r: 4 });
        const reading = container.querySelector(".lt-reading");
        svg.append(line, dot);
        const hide = () => [line, dot, reading].forEach((part) => (part.style.display = "none"));
        const show = (clientX) => {
            const box = svg.getBoundingClientRect();
            const step = 1 + ((clientX - box.left - MARGIN.left) * (scales.lastStep - 1)) / (scales.width - MARGIN.left - MARGIN.right);
            const at = nearest(run.loss, step);
            const [here, loss] = run.loss[at];
            const x = scales.x(here);
            line.setAttribute("x1", x);
            line.setAttribute("x2", x);
            dot.setAttribute("cx", x);
            dot.setAttribute("cy", scales.y(smooth[at]));
            [line, dot, reading].forEach((part) => (part.style.display = ""));
            reading.replaceChildren(
                lt.make("b", {}, `Step ${here.toLocaleString("en-US")}`),
                lt.make("span", {}, `smoothed ${smooth[at].toFixed(4)}`),
                lt.make("span", { className: "lt-faint" }, `raw ${loss === null ? "–" : loss.toFixed(4)}`));
            const isRight = x > scales.width / 2;
            reading.style.left = isRight ? "" : `${x + 12}px`;
            reading.style.right = isRight ? `${scales.width - x + 12}px` : "";
        };
        hide();
        svg.addEventListener("pointermove", (event) => {
            container.pointer = event.clientX;
            show(event.clientX);
        });
        svg.addEventListener("pointerleave", () => {
            container.pointer = null;
            hide();
        });
        if (container.pointer) show(container.pointer);
    }

    // --- layout -----------------------------------------------------------------------------------
    function build(container, redraw) {
        const log = lt.make("input", { type: "checkbox", checked: settings.isLog, title: "Makes small changes late in a run visible", id: "lora_train_chart_log" });
        const smoothing = lt.make("input", { type: "range", min: "0", max: "0.99", step: "0.01", value: String(settings.smoothing), title: "How much the strong line is smoothed; the faint line shows every step", id: "lora_train_chart_smoothing" });
        log.onchange = () => {
            settings.isLog = log.checked;
            redraw();
        };
        smoothing.oninput = () => {
            settings.smoothing = Number(smoothing.value);
            redraw();
        };
        // These are not part of the form.
        for (const input of [log, smoothing]) input.dataset.ltOwn = "yes";
        container.replaceChildren(
            lt.make("div", { className: "lt-toolbar" },
                lt.make("span", { className: "lt-legend" }, lt.make("i", { className: "lt-key-smooth" }), "smoothed", lt.make("i", { className: "lt-key-raw" }), "raw", lt.make("i", { className: "lt-key-steady" }), "steady", lt.make("i", { className: "lt-key-validation" }), "validation"),
                lt.make("label", {}, "Smoothing", smoothing),
                lt.make("label", {}, log, "Log axis")),
            lt.make("div", { className: "lt-chart" }, lt.make("div", { className: "lt-plot" }), lt.make("div", { className: "lt-reading" })));
    }

    lt.drawChart = (container, run) => {
        const redraw = () => {
            container.dataset.mark = "";
            lt.drawChart(container, container.run);
        };
        container.run = run;
        if (!container.firstChild) build(container, redraw);
        const width = Math.round(container.clientWidth);
        const last = run.loss.length ? run.loss[run.loss.length - 1][0] : 0;
        const mark = [run.id, last, run.events.length, width].join("/");
        if (!width || container.dataset.mark === mark) return;
        container.dataset.mark = mark;
        const image = container.querySelector(".lt-plot");
        if (!run.loss.length) {
            image.replaceChildren(lt.make("div", { className: "lt-empty" }, lt.make("span", {}, "The curve starts with the first step.")));
            return;
        }
        const chart = chartOf(run, width);
        image.replaceChildren(chart.svg);
        addReading(container, run, chart);
    };

    /** Small charts of learning rates, gradient norm and memory, each with its latest value. */
    lt.drawCurves = (container, run) => {
        const curves = [...Object.entries(run.rates).map(([group, points]) => [`learning rate, ${group.replace(/_/g, " ")}`, points]), ["gradient norm", run.norm], ["GPU memory (GiB)", run.memory]]
            .filter(([, points]) => points.some(([, value]) => value !== null));
        const last = run.loss.length ? run.loss[run.loss.length - 1][0] : 0;
        const mark = [run.id, last, container.clientWidth].join("/");
        if (container.dataset.mark === mark) return;
        container.dataset.mark = mark;
        container.replaceChildren(lt.make("div", { className: "lt-curves" }, ...curves.map(([name, points]) => {
            const known = points.filter(([, value]) => value !== null);
            return lt.make("figure", { className: "lt-card" }, lt.make("figcaption", {}, name, lt.make("b", {}, lt.rate(known[known.length - 1][1]))), lt.sparkline(known));
        })));
    };

    /** A small curve without axes, for a tile. */
    lt.sparkline = (points) => {
        const highest = Math.max(...points.map(([, value]) => value), 1e-12);
        const last = Math.max(points[points.length - 1][0], 2);
        const every = Math.ceil(points.length / 100);
        const d = points.filter((_, n) => n % every === 0 || n === points.length - 1)
            .map(([step, value], n) => `${n ? "L" : "M"}${((100 * (step - 1)) / (last - 1)).toFixed(1)},${(22 - (20 * value) / highest).toFixed(1)}`)
            .join("");
        return draw("svg", { class: "lt-spark", viewBox: "0 0 100 24", preserveAspectRatio: "none", "aria-hidden": "true" }, draw("path", { d }));
    };
})();
