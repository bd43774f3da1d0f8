/* The table of files in the Results panel. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);

    /** For a run: its epochs in txt2img's X/Y/Z plot; nothing stand-alone. */
    lt.webuiButtons = (run) => {
        if (!lt.canPaste()) return [];
        const add = (label, title, work) => {
            const button = make("button", { type: "button", className: "lt-small", title }, label);
            button.onclick = () => work().catch(lt.notify);
            return button;
        };
        return [
            add("Send to X/Y/Z plot", "Fill in txt2img with the epochs of this run; then press Generate there", async () => {
                lt.paste((await lt.request("xyz-text", { run })).text);
            }),
        ];
    };

    /** By path, the mean loss of the steps since the file before it. */
    function meanLosses(run, files) {
        const steps = [0, ...files.map((file) => file.step).sort((a, b) => a - b)];
        return new Map(files.map((file) => {
            const before = Math.max(...steps.filter((step) => step < file.step));
            const values = (run.loss || []).filter(([step, value]) => step > before && step <= file.step && value !== null).map(([, value]) => value);
            return [file.path, values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : undefined];
        }));
    }

    // --- the files --------------------------------------------------------------------------------
    /** The LoRA files of a run by step, each once, without those that were deleted or renamed. */
    lt.loraFiles = (events) => {
        const files = new Map();
        for (const event of events) {
            if (event.kind === "LoraWritten") files.set(event.path, event);
            if (event.kind === "LoraRemoved") files.delete(event.path);
        }
        return [...files.values()].sort((a, b) => a.step - b.step);
    };

    /** In place of the buttons of a file that is on record but not on disk. */
    lt.missingCell = (path) => make("td", { className: "lt-actions" },
        make("i", { className: "lt-tag lt-missing", title: `There is no file at ${path}. It was moved, renamed or deleted outside this page.` }, "missing"));

    const measureOf = (name) => ((lt.pageData() || {}).measures || {})[name];
    lt.measureTitle = (name) => (measureOf(name) || { title: name.replace(/_/g, " ") }).title;
    const measureHelp = (title) => (Object.values((lt.pageData() || {}).measures || {}).find((one) => one.title === title) || { help: "" }).help;

    lt.drawFiles = (container, run) => {
        const files = lt.loraFiles(run.events);
        const missing = new Set((run.status && run.status.missing) || []);
        const mark = `${run.id}/${run.events.length}/${[...missing].join()}`;
        if (!files.length || container.dataset.mark === mark) return;
        container.dataset.mark = mark;
        const measured = Object.fromEntries(run.events.filter((e) => e.kind === "Measured").map((e) => [e.epoch, e.values]));
        const loss = meanLosses(run, files);
        const ended = Object.fromEntries(run.events.filter((e) => e.kind === "EpochDone").map((e) => [e.epoch, e.mean_loss]));
        const names = [...new Set(Object.values(measured).flatMap((values) => Object.keys(values)))];
        const heads = ["Epoch", "File", "Step", "Mean loss", ...names.map(lt.measureTitle), ""];
        const number = (value) => make("td", { className: "lt-number" }, value === null || value === undefined ? "–" : String(Number(value.toPrecision(3))));
        const conversions = (run.status && run.status.convert_to) || []; // empty if this webui reads the file
        const output = make("div", { className: "lt-t-message" });
        const advice = run.events.findLast((event) => event.kind === "Advised");
        const shown = { advice, run: run.id, triggers: lt.triggersOf(run.status), files: files.map((file) => ({ ...file, missing: missing.has(file.path) })) };
        const isNamed = (file) => advice && file.epoch && file.epoch === advice.epoch;
        const rows = files.map((file) => make("tr", {},
            make("td", { className: "lt-number" }, ...(isNamed(file) ? [make("i", { className: "lt-tag", title: "The epoch that the advice names" }, "best"), " "] : []), file.epoch ? String(file.epoch) : "–"),
            make("td", { className: "lt-file", title: file.path }, lt.fileName(file.path)),
            make("td", { className: "lt-number" }, lt.whole(file.step)),
            number(loss.get(file.path) ?? ended[file.epoch]),
            ...names.map((name) => number((measured[file.epoch] || {})[name])),
            missing.has(file.path) ? lt.missingCell(file.path) : make("td", { className: "lt-actions" },
                ...lt.useButtons(run.id, file.path, lt.triggersOf(run.status)),
                lt.copyButton("Copy path", file.path),
                ...lt.convertButtons(file.path, output, conversions))));
        container.replaceChildren(...(advice ? [lt.adviceCard(shown)] : []), make("div", { className: "lt-scroll" }, make("table", { className: "lt-table" },
            make("thead", {}, make("tr", {}, ...heads.map((head, column) =>
                make("th", { className: column === 1 || !head ? "" : "lt-number", title: measureHelp(head) }, head)))),
            make("tbody", {}, ...rows))), output);
    };

    lt.fileName = (path) => path.split(/[\\/]/).pop();
    lt.copyButton = (label, text) => {
        const button = make("button", { className: "lt-small", type: "button", title: text }, label);
        button.onclick = () => lt.copy(text, button);
        return button;
    };
})();
