/* Parallel coordinates: a line for each run across its settings and measures. The table of the comparison has the same
   values as text. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const HEIGHT = 240;
    const TOP = 46;
    const BOTTOM = 26;
    const AXIS_PX = 128;
    const SIDE = 64;

    const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
    const short = (text, length = 18) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);

    /** An axis with the position of a row's value on it, 0 (bottom) to 1 (top), null if it has none; and its ticks. */
    function makeAxis(label, values, textOf, better) {
        const known = values.filter((value) => value !== null && value !== undefined);
        if (!known.every(isNumber)) return makeCategories(label, values, textOf);
        const [low, high] = [Math.min(...known), Math.max(...known)];
        const isLog = !better && low > 0 && high / low >= 10;
        const scale = (value) => (isLog ? Math.log(value) : value);
        const share = (value) => (high === low ? 0.5 : (scale(value) - scale(low)) / (scale(high) - scale(low)));
        const at = (value) => (better === "lower" ? 1 - share(value) : share(value));
        const ticks = low === high ? [low] : [...new Set(better ? [low, high] : known)];
        return { label, better, at: (value) => (isNumber(value) ? at(value) : null), ticks: ticks.map((value) => [at(value), textOf(value)]) };
    }

    function makeCategories(label, values, textOf) {
        const names = [...new Set(values.map(textOf))];
        const at = (value) => (names.length === 1 ? 0.5 : names.indexOf(textOf(value)) / (names.length - 1));
        return { label, better: "", at, ticks: names.map((name, n) => [names.length === 1 ? 0.5 : n / (names.length - 1), name]) };
    }

    /** The axes of a comparison: the settings that differ, then the measures of the best epochs. */
    function axesOf(answer) {
        const settings = answer.settings.map((place) => {
            const texts = new Map(answer.rows.map((row) => [row.settings[place], row.texts[place]]));
            const values = answer.rows.map((row) => row.settings[place]);
            const textOf = (value) => texts.get(value) || lt.shownValue(value);
            return { ...makeAxis(lt.placeLabel(place), values, textOf, ""), value: (row) => row.settings[place] };
        });
        const measures = answer.measures.map((measure) => ({
            ...makeAxis(measure.title, answer.rows.map((row) => row.best[measure.name]), (value) => lt.fixed(value, measure.digits), measure.better),
            value: (row) => row.best[measure.name],
        }));
        return [...settings, ...measures].filter((axis) => answer.rows.some((row) => axis.at(axis.value(row)) !== null));
    }

    /** The chart, "" if there is nothing to connect. `focus(run)` highlights the run elsewhere on the page too. */
    lt.parallelChart = (answer, focus) => {
        const axes = axesOf(answer);
        if (axes.length < 2 || answer.rows.length < 2) return "";
        const svg = lt.svg;
        const width = SIDE * 2 + AXIS_PX * (axes.length - 1);
        const x = (n) => SIDE + n * AXIS_PX;
        const y = (share) => TOP + (1 - share) * (HEIGHT - TOP - BOTTOM);
        const winners = new Set(Object.values(answer.winners));
        const lines = answer.rows.map((row, number) => {
            let path = "";
            axes.forEach((axis, n) => {
                const share = axis.at(axis.value(row));
                const before = n && axes[n - 1].at(axes[n - 1].value(row)) !== null;
                if (share !== null) path += `${path && before ? "L" : "M"}${x(n)},${y(share).toFixed(1)}`;
            });
            const line = svg("path", { class: `lt-p-line${winners.has(number) ? " lt-p-best" : ""}`, d: path, "data-run": row.run }, svg("title", {}, row.label));
            line.addEventListener("pointerenter", () => focus(row.run));
            line.addEventListener("pointerleave", () => focus(""));
            return line;
        });
        const verticals = axes.map((_, n) => svg("line", { class: "lt-p-axis", x1: x(n), x2: x(n), y1: TOP, y2: HEIGHT - BOTTOM }));
        const texts = axes.map((axis, n) => svg("g", { "pointer-events": "none" },
            svg("text", { class: "lt-p-name", x: x(n), y: 16, "text-anchor": "middle" }, short(axis.label)),
            axis.better ? svg("text", { x: x(n), y: 31, "text-anchor": "middle" }, `${axis.better} is better`) : "",
            ...axis.ticks.map(([share, text]) => svg("text", { x: x(n) + 7, y: y(share) + 4 }, short(text, 14)))));
        const names = axes.map((axis) => axis.label).join(", ");
        const chart = svg("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": `${lt.count(answer.rows.length, "run as a line", "runs as lines")} across ${names}. The table above has the same values.` }, ...verticals, ...lines, ...texts);
        return lt.make("div", { className: "lt-scroll lt-chart lt-parallel", tabIndex: 0, title: "A line for each run; the better end of a measure is at the top" }, chart);
    };
})();
