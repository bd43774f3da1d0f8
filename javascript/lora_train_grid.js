/* Grids of a run: epochs × prompts × strengths, drawn on request and shown while they are drawn. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const small = (...all) => lt.smallButton(...all);
    const reportErrors = (work) => work.catch(lt.notify);
    const AS_RUN = "as in the run";

    const field = (label, title, input) => {
        input.dataset.ltOwn = "yes";
        return make("label", { className: "lt-grid-field", title }, make("span", {}, label), input);
    };
    const options = (values) => values.map(([value, label]) => make("option", { value }, label));

    /** The card of the current run. */
    lt.drawEpochGrid = (container, run) => {
        if (!run.id || container.dataset.run === run.id) return;
        container.dataset.run = run.id;
        container.replaceChildren(lt.gridTools(run.id));
    };

    /** For a run: what to draw, the progress, and the grids that were drawn. */
    lt.gridTools = (run) => {
        const prompts = make("select", {}, ...options([["samples", "the run's sample prompts"], ["triggers", "trigger words"]]));
        const strengths = make("input", { type: "text", value: "1", inputMode: "decimal" });
        const sampler = make("select", {}, ...options([["", AS_RUN]]));
        const draw = (more = {}) => () => reportErrors(lt.request("grid-draw", { run, prompts: prompts.value, strengths: strengths.value, sampler: sampler.value, ...more })
            .then(() => lt.pollOften()));
        const element = make("div", { className: "lt-grid-tools" },
            make("div", { className: "lt-toolbar" },
                field("Prompts", "What the columns of the grid are", prompts),
                field("Strengths", "One row per epoch and strength, for example 0.6, 0.8, 1", strengths),
                field("Sampler", "Sampler for the grid", sampler),
                small("Draw grid", "Draw all epochs of this run with these prompts and strengths", draw()),
                small("All triggers × all epochs", "Draw every trigger word of the run with every epoch", draw({ prompts: "triggers" })),
                small("Overfit test", "Draw all epochs at strength 1 and 2: an epoch that breaks at 2 is overfit or close to it", draw({ prompts: "samples", strengths: "1, 2" }))),
            make("p", { className: "lt-grid-status", role: "status" }),
            make("div", { className: "lt-grid-list" }),
            make("div", { className: "lt-grid-sheet" }));
        Object.assign(element, { run, sampler });
        element.dataset.run = run;
        loadList(element, "");
        return element;
    };

    /** Fetch the grids of the run, and show the one with this id, or the newest. */
    async function loadList(element, id) {
        const answer = await lt.request("grid-list", { run: element.run }).catch(() => null);
        if (!answer) return;
        if (element.sampler.options.length === 1) element.sampler.append(...options(answer.samplers.map((name) => [name, name])));
        const list = element.querySelector(".lt-grid-list");
        if (!answer.grids.length) return list.replaceChildren();
        const choice = make("select", {}, ...answer.grids.map((one) => make("option", { value: one.id }, `${new Date(one.started * 1000).toLocaleString()} · ${one.label}`)));
        choice.value = answer.grids.some((one) => one.id === id) ? id : answer.grids[0].id;
        choice.onchange = () => showSheet(element, choice.value);
        list.replaceChildren(field("Grid", "The grids of this run, newest first", choice));
        await showSheet(element, choice.value);
    }

    async function showSheet(element, id) {
        const holder = element.querySelector(".lt-grid-sheet");
        const sheet = await lt.request("grid-show", { run: element.run, id }).catch(() => null);
        if (!sheet) return;
        const order = sheet.columns.map((_, place) => place).sort((a, b) => sheet.columns[a].is_control - sheet.columns[b].is_control || a - b);
        const columns = order.map((place) => sheet.columns[place]);
        const table = sheet.rows.map((row) => order.map((place, c) => {
            const token = row.cells[place];
            return token ? { token, title: row.label, text: `${columns[c].prompt} · seed ${columns[c].seed}`, hasHeatMaps: true } : null;
        }));
        const control = columns.filter((column) => column.is_control).length;
        if (holder.dataset.id !== id) {
            holder.dataset.id = id;
            holder.sheet = lt.sheetTable({
                prompts: columns.map((column) => column.prompt), rows: sheet.rows.map((row) => row.label),
                concept: columns.length - control, control, table,
            });
            holder.replaceChildren(make("p", { className: "lt-faint" }, sheet.title), holder.sheet);
        } else holder.sheet.fill(table);
        holder.dataset.isWhole = sheet.rows.every((row) => row.cells.every(Boolean)) ? "yes" : "";
    }

    function cancelButton() {
        return small("Cancel", "Stop after this sampling step. Finished images are kept, and drawing the grid again continues from them.",
            () => reportErrors(lt.request("grid-cancel").then(lt.poll)));
    }

    const minutes = (seconds) => (seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`);

    function statusText(grid) {
        if (grid.state === "drawing") {
            const left = grid.eta_seconds === null || grid.eta_seconds === undefined ? "" : `, about ${minutes(grid.eta_seconds)} left`;
            return `Drawing image ${lt.whole(Math.min(grid.done + 1, grid.total))} of ${lt.whole(grid.total)}${grid.step ? `, step ${grid.step}` : ""}${left}.`;
        }
        return grid.state === "done" ? `Grid saved: ${grid.path}` : grid.message;
    }

    /** After every poll: the progress, and the cells that were drawn since. */
    lt.refreshGrids = (root, status) => {
        const grid = (status && status.grid) || { state: "idle" };
        for (const element of root.querySelectorAll(".lt-grid-tools")) {
            const isOurs = grid.run === element.run && grid.state !== "idle";
            const line = element.querySelector(".lt-grid-status");
            const text = isOurs ? statusText(grid) : "";
            if (line.dataset.text !== text) {
                line.dataset.text = text;
                line.replaceChildren(text, ...(isOurs && grid.state === "drawing" ? [" ", cancelButton()] : []));
            }
            const mark = isOurs && grid.sheet ? `${grid.sheet}/${grid.done}/${grid.state}` : "";
            if (!mark || element.dataset.mark === mark || element.offsetParent === null) continue;
            element.dataset.mark = mark;
            const holder = element.querySelector(".lt-grid-sheet");
            if (holder.dataset.id === grid.sheet) showSheet(element, grid.sheet);
            else loadList(element, grid.sheet);
        }
    };
})();
