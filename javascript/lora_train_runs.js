/* Runs: the queue beside the Start button, past runs in Results, "Use in prompt" and "Use now". */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const stem = (file) => file.split(/[\\/]/).pop().replace(/\.safetensors$/, "");

    const small = (...all) => lt.smallButton(...all);
    const reportErrors = (work) => work.catch(lt.notify);

    // --- into the prompt --------------------------------------------------------------------------
    lt.triggersOf = (status) => ((status && status.config && status.config.concepts) || [])
        .filter((concept) => concept.trigger && !concept.is_regularisation).map((concept) => concept.trigger);

    /** The prompt with this LoRA, which replaces another step of the same run, and with its trigger words. */
    function withLora(prompt, name, triggers, strength = 1) {
        const series = name.replace(/-(step)?\d+$/, "").replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
        const old = new RegExp(`<lora:${series}(-(step)?\\d+)?:([^>]*)>`);
        const missing = triggers.filter((word) => !prompt.toLowerCase().includes(word.toLowerCase()));
        const before = old.exec(prompt);
        const text = before ? prompt.replace(old, `<lora:${name}:${strength === 1 ? before[3] : strength}>`) : `${prompt.trim()} <lora:${name}:${strength}>`.trim();
        return [...missing, text].join(", ");
    }

    /** The prompt with the name of this embedding, in place of its word or of another step of the same run. */
    function withEmbedding(prompt, name, word, strength = 1) {
        const series = name.replace(/-(step)?\d+$/, "");
        const plain = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
        const old = new RegExp(`(?<![\\w-])(${plain(series)}-(step)?\\d+|${plain(word)})(?![\\w-])`, "gi");
        const text = strength === 1 ? name : `(${name}:${strength})`;
        return old.test(prompt) ? prompt.replace(old, text) : [text, prompt.trim()].filter(Boolean).join(", ");
    }

    const page = () => (typeof gradioApp === "function" ? gradioApp() : document);
    const promptBox = (name) => page().querySelector(`#txt2img_${name} textarea`);
    const pasteBox = () => page().querySelector("#lora_train_paste_text textarea"); // an input would lose the line breaks

    /** Whether the webui can fill in txt2img from a text. */
    lt.canPaste = () => Boolean(pasteBox());
    /** Fill in txt2img from an infotext, with the webui's own function, and show it. */
    lt.paste = (text) => {
        pasteBox().value = text;
        pasteBox().dispatchEvent(new Event("input", { bubbles: true }));
        setTimeout(() => lt.press("paste_send"), 300); // gradio reads the text a moment later
    };

    /** Add a run's LoRA, or the name of its embedding, to the prompt of txt2img, with the settings of the run's samples if `hasSettings`; stand-alone,
        copy the prompt. A file that is missing or cannot fit the loaded model is not added. */
    lt.useInPrompt = async (run, file, triggers, button, hasSettings, strength = 1) => {
        const area = promptBox("prompt");
        const answer = await lt.request("lora-use", { run, path: file });
        if (area && answer.misfit && button.dataset.ltMisfit !== file) {
            button.dataset.ltMisfit = file; // the second press adds it
            button.textContent = "Use it anyway";
            return lt.notify(answer.misfit);
        }
        const before = area ? area.value : "";
        const text = answer.word ? withEmbedding(before, stem(file), answer.word, strength) : withLora(before, stem(file), triggers, strength);
        if (!area) return lt.copy(text, button);
        if (hasSettings && answer.settings) {
            const negative = (promptBox("neg_prompt") || { value: "" }).value;
            return lt.paste([text, negative && `Negative prompt: ${negative}`, answer.settings].filter(Boolean).join("\n"));
        }
        area.value = text;
        if (typeof updateInput === "function") updateInput(area);
        else area.dispatchEvent(new Event("input", { bubbles: true }));
        if (typeof switch_to_txt2img === "function") switch_to_txt2img();
        return null;
    };
    const SETTINGS_HELP = "Also sets size, steps, CFG, sampler and clip skip of txt2img as the samples of this run had them. It replaces what these fields show now.";
    lt.useButtons = (run, file, triggers, strength = 1) => {
        const use = (hasSettings) => (button) => reportErrors(lt.useInPrompt(run, file, triggers, button, hasSettings, strength));
        return [small(promptBox("prompt") ? "Use in prompt" : "Copy prompt", withLora("", stem(file), triggers, strength), use(false)),
            ...(lt.canPaste() ? [small("Use with settings", SETTINGS_HELP, use(true))] : [])];
    };

    // --- use now ----------------------------------------------------------------------------------
    let pending = null; // {run, known, button, label, triggers, hasSettings} while waiting for the file of this step

    function useNow(run, button, hasSettings) {
        // A step that has its file is not saved again, so no event would come.
        const files = run.events.filter((event) => event.kind === "LoraWritten" && event.step === run.status.step);
        const triggers = lt.triggersOf(run.status);
        if (files.length) return reportErrors(lt.useInPrompt(run.id, files[files.length - 1].path, triggers, button, hasSettings));
        if (pending) return null;
        pending = { run: run.id, known: run.events.length, button, label: button.textContent, triggers, hasSettings };
        button.disabled = true;
        button.textContent = "Saving this step…";
        reportErrors(lt.request("command", { name: "save" }).catch((problem) => {
            clearPending();
            throw problem;
        }));
        return lt.poll();
    }
    function clearPending() {
        if (!pending) return;
        pending.button.disabled = false;
        pending.button.textContent = pending.label;
        pending = null;
    }

    lt.drawSampleTools = (container, run) => {
        const isLive = Boolean(run.status && lt.LIVE.includes(run.status.state));
        if (!container.firstChild) {
            const use = make("button", { type: "button", className: "lt-small lt-use-now", title: "Save a LoRA file of the current step and add it to the prompt of txt2img. Stand-alone, the prompt is copied." }, "Use now");
            use.onclick = () => useNow(container.run, use, false);
            const both = lt.canPaste() ? small("Use now with settings", SETTINGS_HELP, (button) => useNow(container.run, button, true)) : null;
            const sample = small("Sample now", "Generate the sample prompts at the current step.", () => reportErrors(lt.request("command", { name: "sample" })));
            container.append(make("div", { className: "lt-toolbar" }, use, both, sample,
                small(wantsNotice ? NOTICE_ON : "Notify me when done", "Show a browser notification when training ends.", enableNotice)));
        }
        container.run = run;
        container.querySelectorAll("button").forEach((button) => {
            if (!pending || button !== pending.button) button.disabled = !isLive;
        });
        if (!pending) return;
        if (pending.run !== run.id || !isLive) return clearPending();
        const written = run.events.slice(pending.known).find((event) => event.kind === "LoraWritten");
        if (!written) return;
        const { triggers, button, hasSettings } = pending;
        clearPending();
        reportErrors(lt.useInPrompt(run.id, written.path, triggers, button, hasSettings));
    };

    // --- notification at the end ------------------------------------------------------------------
    let lastState = "";
    const NOTICE_ON = "Notification on";
    const STORAGE_KEY = "lora-train-notice"; // remembered across reloads
    let wantsNotice = loadWantsNotice() && "Notification" in window && Notification.permission === "granted";
    function loadWantsNotice() {
        try {
            return localStorage.getItem(STORAGE_KEY) === "yes";
        } catch {
            return false;
        }
    }
    function storeWantsNotice() {
        try {
            localStorage.setItem(STORAGE_KEY, wantsNotice ? "yes" : "no");
        } catch { /* storage is disabled */ }
    }
    function enableNotice(button) {
        if (!("Notification" in window)) return lt.notify("This browser does not support notifications here. Over plain http they work on localhost only.");
        return Notification.requestPermission().then((answer) => {
            wantsNotice = answer === "granted";
            storeWantsNotice();
            button.textContent = wantsNotice ? NOTICE_ON : "Blocked by the browser";
        });
    }
    function notice(text) {
        try {
            new Notification("LoRA Train", { body: text });
        } catch {
            lt.notify(text); // mobile browsers require a service worker
        }
    }
    lt.notifyAtEnd = (status) => {
        const isEnd = ["finished", "stopped", "failed"].includes(status.state) && lt.LIVE.includes(lastState);
        lastState = status.state;
        if (!isEnd) return;
        document.querySelectorAll("[data-lt='runs']").forEach((container) => (container.dataset.stale = "yes"));
        if (wantsNotice) notice(status.message || lt.STATES[status.state]);
    };

    // --- the queue --------------------------------------------------------------------------------
    lt.drawQueue = (container, status) => {
        const queue = (status && status.queue) || [];
        const problem = (status && status.queue_problem) || "";
        const isLive = Boolean(status && lt.LIVE.includes(status.state));
        const mark = JSON.stringify([queue, isLive, problem]);
        if (container.dataset.mark === mark) return;
        container.dataset.mark = mark;
        const warning = problem ? make("p", { className: "lt-faint" }, problem) : null;
        if (!queue.length) return warning ? container.replaceChildren(warning) : container.replaceChildren();
        const act = (name, values) => reportErrors(lt.request(name, values).then(lt.poll));
        const lines = queue.map((entry, n) => {
            const up = small("↑", "Move up", () => act("queue-move", { id: entry.id, place: n - 1 }));
            const down = small("↓", "Move down", () => act("queue-move", { id: entry.id, place: n + 1 }));
            up.disabled = n === 0;
            down.disabled = n === queue.length - 1;
            return make("li", {}, make("span", {}, `${n + 1}. ${entry.name}${entry.run ? " (resumes)" : ""}`), up, down,
                small("×", "Remove from the queue", () => act("queue-remove", { id: entry.id })),
                entry.problem ? make("p", { className: "lt-faint" }, `Could not start: ${entry.problem}`) : null);
        });
        const start = isLive ? make("p", { className: "lt-faint" }, "They start when the current run has ended.")
            : small("Start the queue", "Start the first run; the others follow.", () => act("queue-start", {}));
        return container.replaceChildren(make("div", { className: "lt-queue" }, make("b", {}, "Queue"), warning, make("ol", {}, ...lines), start));
    };

    // --- past runs --------------------------------------------------------------------------------
    /** What a run's last state means once nothing trains it any more. */
    const OUTCOMES = { finished: "finished", stopped: "stopped", failed: "failed", running: "interrupted", paused: "interrupted", stopping: "interrupted", waiting: "interrupted" };

    const outcome = (one) => (one.is_active ? lt.STATES[one.state].toLowerCase() : OUTCOMES[one.state] || one.state || "not started");

    lt.drawRuns = (container) => {
        if (container.offsetParent === null) {
            container.dataset.stale = "yes"; // reloaded when the panel is opened
            return;
        }
        if (container.dataset.stale === "" && container.firstChild) return;
        container.dataset.stale = "";
        listRuns(container, false);
    };

    let runsShown = 0; // one page, until "Show older runs" is pressed
    let wanted = ""; // the run to unfold when the list is drawn next; gradio may build the panel only now

    /** Open Results with this run unfolded. */
    lt.openRun = (run) => {
        wanted = run;
        const container = lt.page().querySelector("[data-lt='runs']");
        if (container) Object.assign(container.dataset, { stale: "yes", shown: "" });
        lt.openPanel("Results");
        setTimeout(lt.drawSoon, 60);
    };

    /** Redraw the list. Unless `forced`, only if it has changed, so that it does not move while in use. */
    async function listRuns(container, forced) {
        const answer = await lt.request("runs-list", { count: runsShown }).catch(lt.notify);
        if (!answer) return;
        const now = JSON.stringify(answer);
        if (!forced && container.dataset.shown === now) return;
        container.dataset.shown = now;
        if (!answer.runs.length) return container.replaceChildren();
        if (wanted) container.open = wanted;
        const open = container.open || (document.querySelector("#lora_train_root").dataset.ltRun ? "" : answer.runs[0].run); // after a restart
        const cards = answer.runs.map((one) => {
            const facts = [one.loras.length ? lt.count(one.loras.length, "file") : "no files",
                one.missing.length ? `${one.missing.length} missing` : "",
                one.epochs ? lt.count(one.epochs, "epoch") : "",
                one.unreadable_lines ? `${lt.count(one.unreadable_lines, "line")} of its log cannot be read` : ""].filter(Boolean);
            const details = make("details", { className: "lt-run" },
                make("summary", { title: "Show files, samples and settings" }, lt.compareBox(one.run), make("b", {}, one.run), make("span", { className: "lt-tag" }, outcome(one)),
                    make("span", { className: "lt-faint" }, facts.join(" · ")),
                    one.reason ? make("span", { className: "lt-run-reason" }, one.reason) : null),
                make("div", { className: "lt-run-body" }));
            details.ontoggle = () => {
                if (!details.open) return;
                container.open = one.run;
                showRun(container, details.querySelector(".lt-run-body"), one);
            };
            details.open = open === one.run;
            return details;
        });
        const older = small("Show older runs", `Show up to ${answer.page_size} more`, () => {
            runsShown = answer.runs.length + answer.page_size;
            return reportErrors(listRuns(container, true));
        });
        container.replaceChildren(make("div", { className: "lt-card" }, make("h3", { className: "lt-heading" }, "Runs", make("span", {}, "newest first"),
            small("TensorBoard", "Open the curves of all runs with TensorBoard logs in a new tab", (button) => reportErrors(openTensorboard(button)))), ...cards, ...(answer.has_older ? [older] : [])));
        const card = cards.find((one) => one.open);
        if (wanted && card) card.scrollIntoView({ behavior: "smooth", block: "nearest" });
        wanted = "";
        return null;
    }

    /** Open the tab at once, as browsers allow that only on a click, and load TensorBoard when it is ready. */
    async function openTensorboard(button) {
        const page = window.open("", "_blank");
        const label = button.textContent;
        Object.assign(button, { disabled: true, textContent: "Starting…" });
        try {
            const { address } = await lt.request("runs-tensorboard");
            if (page) page.location = address;
            else lt.notify(`TensorBoard is running at ${address}`);
        } catch (problem) {
            if (page) page.close();
            throw problem;
        } finally {
            Object.assign(button, { disabled: false, textContent: label });
        }
    }

    const reload = (container) => listRuns(container, true);

    async function showRun(container, body, one) {
        const shown = await lt.request("runs-show", { run: one.run }).catch(lt.notify);
        if (!shown) return;
        const past = { id: one.run, events: shown.events, status: { config: { sample_prompts: [] } } };
        const hasSamples = shown.events.some((event) => event.kind === "SampleDrawn");
        const [samples, grid] = [make("div", {}), make("div", {})];
        const model = shown.model ? make("p", { className: "lt-faint lt-model" }, `Model: ${shown.model}`) : "";
        const advice = lt.adviceCard(shown, () => showRun(container, body, one));
        body.replaceChildren(actions(container, one), model, advice, fileTable(container, one, shown.files, shown.triggers), samples, lt.copiesOf(shown.events), grid,
            ...(one.loras.length ? [lt.gridTools(one.run)] : []), lt.imageLosses(one.run), lt.tagReport(one.run), settingsOf(shown));
        if (hasSamples) lt.drawSamples(samples, past);
        // The samples are the run's own grid; one that was drawn later is shown beside them.
        lt.drawGrid(grid, { id: one.run, events: hasSamples ? [] : shown.events, old: shown.epoch_grid });
    }

    function actions(container, one) {
        const more = make("input", { type: "number", min: "1", value: "5", className: "lt-more", title: "Number of epochs to add", "aria-label": "More epochs" });
        more.dataset.ltOwn = "yes";
        const resumeRun = (name, epochs) => () => reportErrors(lt.request(name, { run: one.run, more_epochs: epochs ? epochs() : 0 }).then(() => {
            lt.notify(name === "runs-resume" ? "Resumed. Follow it in the Monitor." : "Added to the queue.");
            lt.poll();
        }));
        const later = (name, run) => small(`${name} later`, "Add it to the queue", run);
        const word = one.can_begin_again ? "Begin again" : "Resume";
        const resume = one.can_resume || one.can_begin_again
            ? [small(word, "Continue exactly where it was interrupted", resumeRun("runs-resume", 0)), later(word, resumeRun("queue-add-run", 0))] : [];
        const epochs = () => Number(more.value);
        const extend = one.can_extend
            ? [small("Extend by", "Train more epochs with the same file names", resumeRun("runs-resume", epochs)), more, later("Extend", resumeRun("queue-add-run", epochs))] : [];
        return make("div", { className: "lt-toolbar lt-run-actions" },
            small("Train again with these settings", "Fill in the form with the settings of this run; nothing starts", () => lt.applyChange("runs-settings", { run: one.run })),
            small("Repeat with a change…", "Train this run again without a tag or an image, or with another setting, and compare both", (button) => {
                const bar = button.closest(".lt-run-actions");
                if (!bar.parentElement.querySelector(".lt-sweep")) bar.after(lt.repeatForm(one.run));
            }),
            ...(one.loras.length ? lt.webuiButtons(one.run) : []),
            small("Export settings", "Save the settings as a .toml file", () => reportErrors(saveText("runs-export", one.run))),
            ...(one.state === "finished" ? [] : [lt.reportButton(() => one.run)]),
            ...resume, ...extend,
            small("Delete…", "Shows what would be deleted first", () => reportErrors(confirmDelete(container, one))));
    }

    /** Save the text that the server makes of a run. */
    async function saveText(name, run) {
        const answer = await lt.request(name, { run });
        const link = make("a", { href: URL.createObjectURL(new Blob([answer.text], { type: "text/plain" })), download: answer.name });
        link.click();
        URL.revokeObjectURL(link.href);
    }

    lt.reportButton = (run) => small("Save report", "Save one text for a bug report: versions, settings, last events and the error, without names and paths",
        () => reportErrors(saveText("runs-report", run())));

    async function confirmDelete(container, one) {
        const what = await lt.request("runs-preview-delete", { run: one.run });
        const names = what.files.filter((name) => name.endsWith(".safetensors"));
        const listed = names.slice(0, 6).join(", ") + (names.length > 6 ? ` and ${names.length - 6} more` : "");
        const size = `${what.megabytes.toFixed(1)} MB in total`;
        const box = make("div", { className: "lt-confirm", role: "alertdialog", "aria-label": "Delete the run" },
            make("p", {}, names.length ? `${lt.count(what.inside, "file")} in the folder of the run, and ${lt.count(names.length, "LoRA file with its card", "LoRA files with their cards")}: ${listed}. ${size}.` : `${lt.count(what.inside, "file")} in the folder of the run. ${size}.`));
        const remove = (files) => () => reportErrors(lt.request("runs-delete", { run: one.run, files }).then(() => reload(container)));
        box.append(small("Delete the folder, keep the LoRA files", "Deletes samples, log and training states", remove(false)),
            ...(names.length ? [small("Delete everything", "Deletes the LoRA files and cards too", remove(true))] : []),
            small("Cancel", "Delete nothing", () => box.remove()));
        container.querySelectorAll(".lt-confirm").forEach((old) => old.remove());
        [...container.querySelectorAll(".lt-run[open] .lt-run-actions")].find((bar) => bar.closest(".lt-run").querySelector("summary > b").textContent === one.run).after(box);
        box.querySelector("button:last-of-type").focus();
    }

    function fileTable(container, one, files, triggers) {
        if (!files.length) return make("p", { className: "lt-faint" }, "This run has no LoRA files.");
        return make("div", { className: "lt-scroll" }, make("table", { className: "lt-table" }, make("tbody", {}, ...files.map((file) => {
            const cell = make("td", { className: "lt-file", title: file.path }, lt.fileName(file.path));
            const rename = small("Rename…", "Rename the file and its card", () => {
                const input = make("input", { type: "text", value: stem(file.path), "aria-label": "New name" });
                input.dataset.ltOwn = "yes";
                input.onkeydown = (event) => {
                    if (event.key === "Escape") reload(container);
                    if (event.key === "Enter") reportErrors(lt.request("runs-rename", { run: one.run, path: file.path, name: input.value }).then(() => reload(container)));
                };
                cell.replaceChildren(make("span", { className: "lt-tool" }, input));
                input.focus();
                input.select();
            });
            const name = make("td", { className: "lt-number" }, file.epoch ? `epoch ${file.epoch}` : `step ${lt.whole(file.step)}`);
            if (file.missing) return make("tr", {}, name, cell, lt.missingCell(file.path));
            return make("tr", {}, name, cell,
                make("td", { className: "lt-actions" }, ...lt.useButtons(one.run, file.path, triggers), lt.copyButton("Copy path", file.path), rename));
        }))));
    }

    function settingsOf(shown) {
        const rows = Object.entries(shown.settings).map(([name, value]) => make("tr", {}, make("td", {}, name.replace(/_/g, " ")), make("td", {}, Array.isArray(value) ? value.join(" · ") : String(value))));
        const folders = shown.concepts.map((concept) => make("tr", {}, make("td", {}, concept.is_regularisation ? "regularisation" : "concept"), make("td", {}, `${concept.folder}${concept.trigger ? ` · ${concept.trigger}` : ""}`)));
        return make("details", { className: "lt-skipped" }, make("summary", { title: "Settings that differ from the defaults" }, `Settings: ${lt.count(rows.length, "differs", "differ")} from the defaults`),
            make("table", { className: "lt-table" }, make("tbody", {}, ...folders, ...rows)));
    }
})();
