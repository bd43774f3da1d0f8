/* Runs: the queue beside the Start button, the runs of the past in Results, "use in prompt" and "use now". */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const LIVE = ["running", "paused", "waiting", "stopping"];
    const stem = (file) => file.split(/[\\/]/).pop().replace(/\.safetensors$/, "");

    const small = (label, title, work) => {
        const button = make("button", { type: "button", className: "lt-small", title }, label);
        button.onclick = () => work(button);
        return button;
    };
    const did = (work) => work.catch(lt.tell);

    // --- into the prompt --------------------------------------------------------------------------
    lt.triggersOf = (status) => ((status && status.config && status.config.concepts) || [])
        .filter((concept) => concept.trigger && !concept.is_regularisation).map((concept) => concept.trigger);

    /** The webui's prompt with this LoRA in the place of another step of the same run, and with its triggers. */
    function withLora(prompt, name, triggers) {
        const series = name.replace(/-(step)?\d+$/, "").replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
        const old = new RegExp(`<lora:${series}(-(step)?\\d+)?:([^>]*)>`);
        const missing = triggers.filter((word) => !prompt.toLowerCase().includes(word.toLowerCase()));
        const before = old.exec(prompt);
        const text = before ? prompt.replace(old, `<lora:${name}:${before[3]}>`) : `${prompt.trim()} <lora:${name}:1>`.trim();
        return [...missing, text].join(", ");
    }

    /** Into txt2img where there is one; else onto the clipboard. */
    lt.useInPrompt = (file, triggers, button) => {
        const name = stem(file);
        const area = (typeof gradioApp === "function" ? gradioApp() : document).querySelector("#txt2img_prompt textarea");
        if (!area) return lt.copy(withLora("", name, triggers), button);
        area.value = withLora(area.value, name, triggers);
        if (typeof updateInput === "function") updateInput(area);
        else area.dispatchEvent(new Event("input", { bubbles: true }));
        if (typeof switch_to_txt2img === "function") switch_to_txt2img();
        return null;
    };
    lt.useButton = (file, triggers) => {
        const hasPrompt = document.querySelector("#txt2img_prompt") !== null;
        return small(hasPrompt ? "Use in prompt" : "Copy prompt", withLora("", stem(file), triggers), (button) => lt.useInPrompt(file, triggers, button));
    };

    // --- use now ----------------------------------------------------------------------------------
    let awaited = null; // {run, step, button}: a file of this very step was asked for

    function useNow(run, button) {
        awaited = { run: run.id, known: run.events.length, button, triggers: lt.triggersOf(run.status) };
        button.disabled = true;
        button.textContent = "Writing this step…";
        did(lt.ask("command", { name: "save" }).catch((problem) => {
            forget();
            throw problem;
        }));
        lt.poll();
    }
    function forget() {
        if (!awaited) return;
        awaited.button.disabled = false;
        awaited.button.textContent = "Use now";
        awaited = null;
    }

    lt.drawSampleTools = (place, run) => {
        const isLive = Boolean(run.status && LIVE.includes(run.status.state));
        if (!place.firstChild) {
            const use = make("button", { type: "button", className: "lt-small lt-use-now", title: "Writes a LoRA file of this very step and puts it into txt2img's prompt; without a webui the prompt is copied." }, "Use now");
            use.onclick = () => useNow(place.run, use);
            const sample = small("Sample now", "Draw the sample prompts with what is learnt so far.", () => did(lt.ask("command", { name: "sample" })));
            place.append(make("div", { className: "lt-toolbar" }, use, sample,
                small(wantsNotice ? TOLD : "Tell me at the end", "Ask the browser to show a notification when the training ends.", askToNotify)));
        }
        place.run = run;
        place.querySelectorAll("button").forEach((button) => {
            if (!awaited || button !== awaited.button) button.disabled = !isLive;
        });
        if (!awaited) return;
        if (awaited.run !== run.id || !isLive) return forget();
        const written = run.events.slice(awaited.known).find((event) => event.kind === "LoraWritten");
        if (!written) return;
        const { triggers, button } = awaited;
        forget();
        lt.useInPrompt(written.path, triggers, button);
    };

    // --- the end is told --------------------------------------------------------------------------
    let lastState = "";
    const TOLD = "You will be told";
    const WISH = "lora-train-notice"; // this browser's, over a reload
    let wantsNotice = hadWish() && "Notification" in window && Notification.permission === "granted";
    function hadWish() {
        try {
            return localStorage.getItem(WISH) === "yes";
        } catch {
            return false;
        }
    }
    function keepWish() {
        try {
            localStorage.setItem(WISH, wantsNotice ? "yes" : "no");
        } catch { /* a browser that keeps nothing is asked again */ }
    }
    function askToNotify(button) {
        if (!("Notification" in window)) return lt.tell("This browser shows no notifications. Over plain http only localhost may.");
        return Notification.requestPermission().then((answer) => {
            wantsNotice = answer === "granted";
            keepWish();
            button.textContent = wantsNotice ? TOLD : "Not allowed by the browser";
        });
    }
    function notice(text) {
        try {
            new Notification("LoRA Train", { body: text });
        } catch {
            lt.tell(text); // browsers of phones allow it from a service worker only
        }
    }
    lt.noticed = (status) => {
        const isEnd = ["finished", "stopped", "failed"].includes(status.state) && LIVE.includes(lastState);
        lastState = status.state;
        if (!isEnd) return;
        document.querySelectorAll("[data-lt='runs']").forEach((place) => (place.dataset.stale = "yes"));
        if (wantsNotice) notice(status.message || lt.STATES[status.state]);
    };

    // --- the queue --------------------------------------------------------------------------------
    lt.drawQueue = (place, status) => {
        const queue = (status && status.queue) || [];
        const isLive = Boolean(status && LIVE.includes(status.state));
        const mark = JSON.stringify([queue, isLive]);
        if (place.dataset.mark === mark) return;
        place.dataset.mark = mark;
        if (!queue.length) return place.replaceChildren();
        const act = (name, values) => did(lt.ask(name, values).then(lt.poll));
        const lines = queue.map((entry, n) => {
            const up = small("↑", "Earlier", () => act("queue-move", { id: entry.id, place: n - 1 }));
            const down = small("↓", "Later", () => act("queue-move", { id: entry.id, place: n + 1 }));
            up.disabled = n === 0;
            down.disabled = n === queue.length - 1;
            return make("li", {}, make("span", {}, `${n + 1}. ${entry.name}${entry.run ? " (goes on)" : ""}`), up, down,
                small("×", "Take it out of the queue", () => act("queue-remove", { id: entry.id })));
        });
        const start = isLive ? make("p", { className: "lt-faint" }, "They follow when the present run has ended.")
            : small("Start the queue", "Begin the first one; the others follow.", () => act("queue-start", {}));
        return place.replaceChildren(make("div", { className: "lt-queue" }, make("b", {}, "Queue"), make("ol", {}, ...lines), start));
    };

    // --- runs of the past -------------------------------------------------------------------------
    const WORDS = { finished: "finished", stopped: "stopped", failed: "failed", running: "cut short", paused: "cut short", stopping: "cut short", waiting: "cut short" };

    lt.drawRuns = (place) => {
        if (place.offsetParent === null) {
            place.dataset.stale = "yes"; // asked for anew when the panel is opened
            return;
        }
        if (place.dataset.stale === "" && place.firstChild) return;
        place.dataset.stale = "";
        listRuns(place, false);
    };

    /** The cards drawn anew; unless `forced` only if they changed, so that nothing moves under a hand that is busy there. */
    async function listRuns(place, forced) {
        const answer = await lt.ask("runs-list").catch(lt.tell);
        if (!answer) return;
        const now = JSON.stringify(answer.runs);
        if (!forced && place.dataset.shown === now) return;
        place.dataset.shown = now;
        if (!answer.runs.length) return place.replaceChildren();
        const open = place.open;
        const cards = answer.runs.map((one) => {
            const epochs = one.loras.length ? `${one.loras.length} ${one.loras.length === 1 ? "file" : "files"}` : "no files";
            const details = make("details", { className: "lt-run" },
                make("summary", { title: "Unfold its files, samples and settings" }, make("b", {}, one.run), make("span", { className: "lt-tag" }, WORDS[one.state] || one.state || "not begun"),
                    make("span", { className: "lt-faint" }, `${epochs}${one.epochs ? ` · ${one.epochs} ${one.epochs === 1 ? "epoch" : "epochs"}` : ""}`)),
                make("div", { className: "lt-run-body" }));
            details.ontoggle = () => {
                if (!details.open) return;
                place.open = one.run;
                showRun(place, details.querySelector(".lt-run-body"), one);
            };
            details.open = open === one.run;
            return details;
        });
        return place.replaceChildren(make("div", { className: "lt-card" }, make("h3", { className: "lt-heading" }, "Runs", make("span", {}, "the newest first"),
            small("TensorBoard", "The curves of all runs that logged them, in a page of its own", (button) => did(openBoard(button)))), ...cards));
    }

    /** Opened at once, as browsers let only a click open a page; it goes to the board when that answers. */
    async function openBoard(button) {
        const page = window.open("", "_blank");
        const label = button.textContent;
        Object.assign(button, { disabled: true, textContent: "Starting…" });
        try {
            const { address } = await lt.ask("runs-board");
            if (page) page.location = address;
            else lt.tell(`TensorBoard answers at ${address}`);
        } catch (problem) {
            if (page) page.close();
            throw problem;
        } finally {
            Object.assign(button, { disabled: false, textContent: label });
        }
    }

    const again = (place) => listRuns(place, true);

    async function showRun(place, body, one) {
        const shown = await lt.ask("runs-show", { run: one.run }).catch(lt.tell);
        if (!shown) return;
        const files = shown.events.filter((event) => event.kind === "LoraWritten");
        const unique = [...new Map(files.map((file) => [file.path, file])).values()];
        const past = { id: one.run, events: shown.events, status: { config: { sample_prompts: [] } } };
        const samples = make("div", {});
        const grid = make("div", {});
        body.replaceChildren(actions(place, one), fileTable(place, one, unique, shown.triggers), samples, grid, settingsOf(shown));
        if (shown.events.some((event) => event.kind === "SampleDrawn")) lt.drawSamples(samples, past);
        else lt.drawGrid(grid, past);
    }

    function actions(place, one) {
        const more = make("input", { type: "number", min: "1", value: "5", className: "lt-more", title: "By how many epochs", "aria-label": "More epochs" });
        more.dataset.ltOwn = "yes";
        const going = (name) => () => did(lt.ask(name, { run: one.run, more_epochs: one.can_extend ? Number(more.value) : 0 }).then(() => {
            lt.tell(name === "runs-go-on" ? "It goes on; the Monitor shows how." : "It waits in the queue.");
            lt.poll();
        }));
        const word = one.can_extend ? "Extend by" : "Resume";
        const goOn = one.can_extend || one.can_resume
            ? [small(word, one.can_extend ? "More epochs in the same series of files" : "Go on exactly where it was cut short", going("runs-go-on")),
                one.can_extend ? more : null, small(`${word}, later`, "Put it into the queue", going("queue-add-run"))]
            : [];
        return make("div", { className: "lt-toolbar lt-run-actions" },
            small("Train again with these settings", "Fill the form in with this run's settings; nothing starts", () => lt.change("runs-settings", { run: one.run })),
            small("Export settings", "Save them as a .toml file", () => did(exportSettings(one))),
            ...goOn,
            small("Delete…", "Says first what would be deleted", () => did(askToDelete(place, one))));
    }

    async function exportSettings(one) {
        const answer = await lt.ask("runs-export", { run: one.run });
        const link = make("a", { href: URL.createObjectURL(new Blob([answer.text], { type: "text/plain" })), download: answer.name });
        link.click();
        URL.revokeObjectURL(link.href);
    }

    async function askToDelete(place, one) {
        const what = await lt.ask("runs-to-delete", { run: one.run });
        const names = what.files.filter((name) => name.endsWith(".safetensors"));
        const listed = names.slice(0, 6).join(", ") + (names.length > 6 ? ` and ${names.length - 6} more` : "");
        const size = `${what.megabytes.toFixed(1)} MB in all`;
        const box = make("div", { className: "lt-confirm", role: "alertdialog", "aria-label": "Delete the run" },
            make("p", {}, names.length ? `${what.inside} files of the run's folder, and ${names.length} LoRA files with their cards: ${listed}. ${size}.` : `${what.inside} files of the run's folder. ${size}.`));
        const remove = (files) => () => did(lt.ask("runs-delete", { run: one.run, files }).then(() => again(place)));
        box.append(small("Delete the folder, keep the LoRA files", "Samples, log and states go; the LoRA files stay", remove(false)),
            ...(names.length ? [small("Delete everything of this run", "LoRA files and cards too", remove(true))] : []),
            small("Keep all", "Nothing is deleted", () => box.remove()));
        place.querySelectorAll(".lt-confirm").forEach((old) => old.remove());
        [...place.querySelectorAll(".lt-run[open] .lt-run-actions")].find((bar) => bar.closest(".lt-run").querySelector("b").textContent === one.run).after(box);
        box.querySelector("button:last-of-type").focus();
    }

    function fileTable(place, one, files, triggers) {
        if (!files.length) return make("p", { className: "lt-faint" }, "Its files are gone.");
        return make("div", { className: "lt-scroll" }, make("table", { className: "lt-table" }, make("tbody", {}, ...files.map((file) => {
            const cell = make("td", { className: "lt-file", title: file.path }, lt.fileName(file.path));
            const rename = small("Rename…", "The file and its card get another name", () => {
                const input = make("input", { type: "text", value: stem(file.path), "aria-label": "New name" });
                input.dataset.ltOwn = "yes";
                input.onkeydown = (event) => {
                    if (event.key === "Escape") again(place);
                    if (event.key === "Enter") did(lt.ask("runs-rename", { run: one.run, path: file.path, name: input.value }).then(() => again(place)));
                };
                cell.replaceChildren(make("span", { className: "lt-tool" }, input));
                input.focus();
                input.select();
            });
            return make("tr", {}, make("td", { className: "lt-number" }, `epoch ${file.epoch}`), cell,
                make("td", { className: "lt-actions" }, lt.useButton(file.path, triggers), lt.copyButton("Copy path", file.path), rename));
        }))));
    }

    function settingsOf(shown) {
        const rows = Object.entries(shown.settings).map(([name, value]) => make("tr", {}, make("td", {}, name.replace(/_/g, " ")), make("td", {}, Array.isArray(value) ? value.join(" · ") : String(value))));
        const folders = shown.concepts.map((concept) => make("tr", {}, make("td", {}, concept.is_regularisation ? "regularisation" : "concept"), make("td", {}, `${concept.folder}${concept.trigger ? ` · ${concept.trigger}` : ""}`)));
        return make("details", { className: "lt-skipped" }, make("summary", { title: "All that is not as it is at first" }, `Settings: ${rows.length} differ from the defaults`),
            make("table", { className: "lt-table" }, make("tbody", {}, ...folders, ...rows)));
    }
})();
