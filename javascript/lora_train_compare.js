/* Comparisons in Results: the list of sweeps, and runs side by side as a table, a chart and their samples. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const small = (...all) => lt.smallButton(...all);
    const reportErrors = (work) => work.catch(lt.notify);

    /** `concepts[1].repeats` → `Concept 1 repeats`. */
    lt.placeLabel = (place) => {
        const words = place.replace(/^concepts\[(\d+)\]\./, "concept $1 ").replace(/_/g, " ");
        return words[0].toUpperCase() + words.slice(1);
    };
    lt.shownValue = (value) => (value === null || value === undefined ? "–" : Array.isArray(value) ? value.join(", ") || "empty" : String(value));
    const signed = (value, digits) => {
        const text = lt.fixed(value, digits);
        return text.startsWith("-") ? text.replace("-", "−") : `+${text}`;
    };

    // --- what is open -----------------------------------------------------------------------------
    const chosen = []; // ids of runs, the reference first
    let openSweep = "";
    let sorting = { key: "", isDown: false };
    const pair = { isOpen: false, left: "", right: "" }; // of "All epochs side by side", kept while runs continue

    lt.compareBox = (run) => {
        const box = make("input", { type: "checkbox", checked: chosen.includes(run), title: "Compare this run with others", "aria-label": `Compare ${run}` });
        box.dataset.ltOwn = "yes";
        box.onclick = (event) => event.stopPropagation(); // the card around it stays as it is
        box.onchange = () => {
            if (box.checked) chosen.push(run);
            else chosen.splice(chosen.indexOf(run), 1);
            openSweep = "";
            redraw();
        };
        return make("span", { className: "lt-tool" }, box);
    };
    lt.openComparison = (sweep) => {
        openSweep = sweep;
        chosen.length = 0;
        lt.openPanel("Results");
        setTimeout(redraw, 60);
    };
    function redraw() {
        const container = lt.page().querySelector("[data-lt='comparison']");
        if (container) Object.assign(container.dataset, { seen: "", shown: "" });
        lt.drawSoon();
    }
    function close() {
        openSweep = "";
        chosen.length = 0;
        lt.page().querySelectorAll("[data-lt='runs'] summary input[type=checkbox]").forEach((box) => (box.checked = false));
        redraw();
    }

    /** Fetch the sweeps and the open comparison when the panel is visible and something may have changed. */
    lt.drawComparison = (container, run) => {
        if (container.offsetParent === null) {
            container.dataset.seen = "";
            return;
        }
        const status = run.status || {};
        const seen = [run.id, status.state, status.epoch, run.events.length && status.phase, (status.queue || []).length].join("/");
        if (container.dataset.seen === seen) return;
        container.dataset.seen = seen;
        reportErrors(show(container));
    };

    /** A run or a sweep is gone: say so once, and close the comparison. */
    function giveUp(problem) {
        lt.notify(problem);
        close();
        return null;
    }

    async function show(container) {
        const wanted = { sweep: openSweep, runs: [...chosen] };
        const { sweeps } = await lt.request("sweep-list");
        const isOpen = wanted.sweep || wanted.runs.length > 1;
        const answer = isOpen ? await lt.request("compare", wanted).catch(giveUp) : null;
        if (JSON.stringify(wanted) !== JSON.stringify({ sweep: openSweep, runs: chosen })) return null; // another one was opened
        const now = JSON.stringify([sweeps, answer, chosen]);
        if (container.dataset.shown === now) return;
        container.dataset.shown = now;
        if (!sweeps.length && !chosen.length) return container.replaceChildren();
        const heading = make("h3", { className: "lt-heading" }, "Comparisons", make("span", {}, "sweeps, and the runs that you mark below"));
        const hint = chosen.length === 1 && !openSweep ? make("p", { className: "lt-faint" }, `Mark another run to compare it with ${chosen[0]}.`) : null;
        const shown = make("div", { className: "lt-x-body" });
        container.replaceChildren(make("div", { className: "lt-card" }, heading, hint, ...sweeps.map(sweepLine), shown));
        if (answer) drawAnswer(shown, answer);
        return null;
    }

    function sweepLine(sweep) {
        const isOpen = sweep.sweep === openSweep;
        const open = small(isOpen ? "Close" : "Compare", isOpen ? "Close this comparison" : "Show the runs of this sweep side by side", () => (isOpen ? close() : lt.openComparison(sweep.sweep)));
        open.setAttribute("aria-expanded", String(isOpen));
        const missing = sweep.open ? small(`Queue what is missing (${sweep.open})`, "Resume or repeat the runs of this sweep that failed, were stopped or never started", () => reportErrors(lt.request("sweep-continue", { sweep: sweep.sweep }).then(() => {
            lt.pollOften();
            redraw();
        }))) : null;
        return make("div", { className: `lt-x-sweep${isOpen ? " lt-x-open" : ""}` }, make("b", {}, sweep.sweep), make("span", { className: "lt-faint" }, sweep.text), open, missing);
    }

    // --- one comparison ---------------------------------------------------------------------------
    function drawAnswer(box, answer) {
        const waiting = (answer.waiting || []).map((one) => make("li", { className: one.problem ? "lt-bad" : "lt-faint" }, `${one.label}: ${one.state}${one.problem ? `. ${one.problem}` : ""}`));
        const list = waiting.length ? make("ul", { className: "lt-x-waiting" }, ...waiting) : "";
        if (!answer.rows) return box.replaceChildren(make("p", { className: "lt-faint" }, "No run of this sweep has started yet."), list);
        const notes = answer.notes.map((note) => make("p", { className: "lt-faint" }, note));
        const focus = (run) => box.querySelectorAll("[data-run]").forEach((one) => one.classList.toggle("lt-x-focus", one.dataset.run === run));
        const table = make("div", { className: "lt-scroll" });
        drawTable(table, answer, focus);
        return box.replaceChildren(table, list, ...notes, lt.parallelChart(answer, focus), bestEpochs(answer), sideBySide(answer));
    }

    function sorted(answer) {
        const measure = answer.measures.find((one) => one.name === sorting.key);
        const valueOf = (row) => (measure ? row.best[sorting.key] : row.settings[sorting.key]);
        if (!measure && !answer.settings.includes(sorting.key)) return answer.rows;
        const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : lt.shownValue(a).localeCompare(lt.shownValue(b)));
        const missing = (row) => valueOf(row) === undefined || valueOf(row) === null;
        return [...answer.rows].sort((a, b) => missing(a) - missing(b) || (sorting.isDown ? -1 : 1) * compare(valueOf(a), valueOf(b)));
    }

    function drawTable(box, answer, focus) {
        const head = (key, label, note) => {
            const button = small(label, `Sort by this column. ${note}`.trim(), () => {
                sorting = { key, isDown: sorting.key === key && !sorting.isDown };
                drawTable(box, answer, focus);
            });
            const order = sorting.key !== key ? "none" : sorting.isDown ? "descending" : "ascending";
            return make("th", { scope: "col", "aria-sort": order }, button);
        };
        const heads = [make("th", { scope: "col" }, "Run"), ...answer.settings.map((place) => head(place, lt.placeLabel(place), "")), make("th", { scope: "col" }, "Epoch"),
            ...answer.measures.map((one) => head(one.name, one.title, [one.help, one.better ? `${one.better} is better` : ""].filter(Boolean).join(" "))), make("th", {})];
        box.replaceChildren(make("table", { className: "lt-table lt-x-table" },
            make("caption", { className: "lt-faint" }, "At the best epoch of each run; below it the difference to the first run"),
            make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...sorted(answer).map((row) => tableRow(answer, row, focus)))));
    }

    function tableRow(answer, row, focus) {
        const number = answer.rows.indexOf(row);
        const epoch = row.epoch ? [`${row.epoch} of ${row.epochs}`, make("small", {}, row.why)] : [row.state || "not started", make("small", {}, row.reason)];
        const measures = answer.measures.map((one) => {
            if (!(one.name in row.best)) return make("td", {}, "–");
            const isBest = answer.winners[one.name] === number;
            const difference = number && one.name in row.differences ? signed(row.differences[one.name], one.digits) : "";
            return make("td", { className: isBest ? "lt-x-best" : "" }, lt.fixed(row.best[one.name], one.digits), isBest ? make("i", { className: "lt-tag" }, "best") : "", make("small", {}, difference));
        });
        const line = make("tr", {}, make("th", { scope: "row" }, small(row.run.replace(/^\d{8}-\d{6}-/, ""), `Open ${row.run} in the list below`, () => lt.openRun(row.run)), number ? "" : make("i", { className: "lt-tag" }, "first")),
            ...answer.settings.map((place) => make("td", {}, row.texts[place])), make("td", {}, ...epoch), ...measures,
            make("td", { className: "lt-actions" }, small("Train again with these", "Fill in the form with the settings of this run; nothing starts", () => lt.applyChange("runs-settings", { run: row.run }))));
        line.dataset.run = row.run;
        line.onpointerenter = () => focus(row.run);
        line.onpointerleave = () => focus("");
        return line;
    }

    // --- samples ----------------------------------------------------------------------------------
    const keyOf = (sample) => `${sample.prompt}\n${sample.seed}`;

    /** A table of samples: `rows` of {title, note, cells: [{token, title, text} or null]}, under these heads. */
    function sheet(heads, rows) {
        const table = rows.map((row) => row.cells);
        const cell = (entry, r, c) => {
            if (!entry) return make("td", {}, "–");
            const button = make("button", { type: "button", className: "lt-thumb", title: `${entry.title}: ${entry.text}` },
                make("img", { src: lt.url(`thumbnail/${entry.token}`), alt: `${entry.title}: ${entry.text}`, loading: "lazy" }));
            button.onclick = () => lt.enlarge(table, r, c);
            return make("td", {}, button);
        };
        return make("div", { className: "lt-scroll" }, make("table", { className: "lt-sheet lt-x-sheet" },
            make("thead", {}, make("tr", {}, make("th", {}), ...heads.map((head) => make("th", { title: head, scope: "col" }, make("span", {}, head))))),
            make("tbody", {}, ...rows.map((row, r) => make("tr", {}, make("th", { scope: "row" }, make("span", {}, row.title), make("small", {}, row.note)), ...row.cells.map((entry, c) => cell(entry, r, c)))))));
    }

    /** A row for each run at its best epoch, below the samples without LoRA. */
    function bestEpochs(answer) {
        const keys = [...new Set([answer.without, ...answer.rows.map((row) => row.samples)].flat().map(keyOf))];
        if (!keys.length) return "";
        const row = (title, note, samples) => ({ title, note, cells: keys.map((key) => {
            const sample = samples.find((one) => keyOf(one) === key);
            return sample ? { token: sample.token, title: `${title} · ${note}`, text: `${sample.prompt} · seed ${sample.seed}`, hasHeatMaps: true } : null;
        }) });
        const rows = answer.rows.filter((one) => one.epoch).map((one) => row(one.label, `epoch ${one.epoch}`, one.samples));
        if (answer.without.length) rows.unshift(row("No LoRA", "", answer.without));
        return make("div", {}, make("h4", {}, "Samples of the best epochs"), sheet(keys.map((key) => key.split("\n")[0]), rows));
    }

    /** All epochs of two runs: each prompt of one beside the same prompt of the other. */
    function sideBySide(answer) {
        if (answer.rows.length < 2) return "";
        const winner = Object.values(answer.winners).find((number) => number > 0) || 1;
        const pick = (side, number) => {
            const run = answer.rows.some((row) => row.run === pair[side]) ? pair[side] : answer.rows[number].run;
            const select = make("select", { title: `The run on the ${side}`, "aria-label": `The run on the ${side}` }, ...answer.rows.map((row) => make("option", { value: row.run, selected: row.run === run }, row.label)));
            select.dataset.ltOwn = "yes";
            return select;
        };
        const [left, right] = [pick("left", 0), pick("right", winner)];
        const shown = make("div", {});
        const draw = () => {
            Object.assign(pair, { left: left.value, right: right.value });
            reportErrors(drawPair(shown, left, right));
        };
        left.onchange = right.onchange = draw;
        const details = make("details", { className: "lt-skipped lt-x-pair" }, make("summary", { title: "Show all epochs of two runs, prompt beside prompt" }, "All epochs side by side"),
            make("div", { className: "lt-tool lt-x-picks" }, left, right), shown);
        details.ontoggle = () => {
            pair.isOpen = details.open;
            if (details.open && !shown.firstChild) draw();
        };
        details.open = pair.isOpen;
        return details;
    }

    async function drawPair(box, ...picks) {
        const runs = await Promise.all(picks.map((pick) => lt.request("runs-show", { run: pick.value })));
        const names = picks.map((pick) => pick.selectedOptions[0].textContent);
        const samples = runs.map((run) => run.events.filter((event) => event.kind === "SampleDrawn" && !event.step && event.token));
        const keys = [...new Set(samples.flat().map(keyOf))];
        const epochs = [...new Set(samples.flat().map((event) => event.epoch))].sort((a, b) => a - b);
        if (!keys.length) return box.replaceChildren(make("p", { className: "lt-faint" }, "Neither run has samples."));
        const rows = epochs.map((epoch) => {
            const title = epoch ? `Epoch ${epoch}` : "No LoRA";
            return { title, note: "", cells: keys.flatMap((key) => samples.map((drawn, side) => {
                const event = drawn.filter((one) => one.epoch === epoch && keyOf(one) === key).pop();
                return event ? { token: event.token, title: `${title} · ${names[side]}`, text: `${event.prompt} · seed ${event.seed}`, hasHeatMaps: true } : null;
            })) };
        });
        return box.replaceChildren(sheet(keys.flatMap((key) => names.map((name) => `${key.split("\n")[0]} · ${name}`)), rows));
    }
})();
