/* The LoRA Train tab: polls the run's state once a second and draws it. Display only; what changes
   anything goes through the form's own buttons, or through `lt.ask` with the key that stands in the page.
   Charts, pictures, cards and the other panels are in the files beside. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});

    const LIVE = ["running", "paused", "waiting", "stopping"];
    const BUSY_MS = 1000;
    const IDLE_MS = 4000;
    const KEEP_FORM_MS = 1200;
    const FILL_MS = 8000; // a form that is still not filled in then is given free all the same
    const opened = Date.now();
    const PHASES = {
        load: "Loading the model",
        scan: "Reading the folders",
        latents: "Encoding pictures",
        text: "Encoding captions",
        train: "Training",
        samples: "Drawing samples",
        grid: "Drawing the grid",
        evaluate: "Measuring",
    };
    const STATES = {
        idle: "Ready",
        queued: "Waiting",
        running: "Running",
        paused: "Paused",
        waiting: "Waiting",
        stopping: "Stopping",
        stopped: "Stopped",
        finished: "Finished",
        failed: "Failed",
    };

    // --- small tools ------------------------------------------------------------------------------
    const page = () => (typeof gradioApp === "function" ? gradioApp() : document);
    const tab = () => page().querySelector("#lora_train_root");

    /** An element with properties, `data-` and `aria-` attributes, and children (nodes or texts). */
    lt.make = (name, properties = {}, ...children) => {
        const made = document.createElement(name);
        for (const [key, value] of Object.entries(properties)) {
            if (key in made) made[key] = value;
            else made.setAttribute(key, value);
        }
        made.append(...children.filter((child) => child !== null && child !== undefined));
        return made;
    };
    const make = lt.make;

    lt.clock = (seconds) => {
        if (seconds === null || seconds === undefined) return "–";
        const all = Math.round(seconds);
        const parts = [Math.floor(all / 3600), Math.floor(all / 60) % 60, all % 60];
        const text = parts.map((part) => String(part).padStart(2, "0")).join(":");
        return text.replace(/^00:/, "").replace(/^0(\d:)/, "$1");
    };
    lt.rate = (value) => {
        if (!value) return "0";
        return value >= 1e-3 ? String(Number(value.toPrecision(3))) : value.toExponential(1).replace(".0e", "e");
    };
    const whole = (value) => value.toLocaleString("en-US");

    lt.url = (path) => new URL(`lora-train/v1/${path}`, window.location.href.split(/[?#]/)[0]).href;

    /** The server's answer to one of the page's own buttons; throws with its sentence when it refuses. */
    lt.ask = async (name, values = {}) => {
        const door = page().querySelector("#lora_train_door [data-key]");
        const response = await fetch(lt.url(`page/${name}`), {
            method: "POST",
            headers: { "Content-Type": "application/json", "X-LoRA-Train-Page": door ? door.dataset.key : "" },
            body: JSON.stringify(values),
        });
        const answer = await response.json().catch(() => ({ detail: {} }));
        if (!response.ok) throw new Error((answer.detail || {}).message || `The server answered ${response.status}.`);
        return answer;
    };

    /** A button of gradio's by its name, whichever element carries the id. */
    lt.press = (name) => {
        const button = page().querySelector(`button#lora_train_${name}, #lora_train_${name} button`);
        if (button) button.click();
    };

    /** A change of the form that the server has prepared: asked for, then taken with the form's values. */
    lt.change = (name, values) => lt.ask(name, values).then(() => lt.press("take")).catch(lt.tell);

    /** A sentence in the strip, for a moment. */
    lt.tell = (problem) => {
        const place = page().querySelector("#lora_train_state [data-lt='strip']");
        if (!place) return;
        place.querySelectorAll(".lt-told").forEach((old) => old.remove());
        const told = lt.make("p", { className: "lt-told", role: "status" }, problem.message || String(problem));
        place.append(told);
        setTimeout(() => told.remove(), 8000);
    };

    lt.copy = async (text, button) => {
        await navigator.clipboard.writeText(text).catch(() => copyByHand(text));
        const before = button.textContent;
        button.textContent = "Copied";
        setTimeout(() => (button.textContent = before), 1200);
    };
    // The clipboard interface exists on https and localhost only; a webui in the local network has neither.
    function copyByHand(text) {
        const area = make("textarea", { value: text });
        document.body.append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
    }

    // --- the run, as far as this page knows it ----------------------------------------------------
    const nothing = () => ({ id: null, next: 0, status: null, events: [], loss: [], norm: [], rates: {} });
    let run = nothing();

    const lastStep = (points) => (points.length ? points[points.length - 1][0] : 0);

    function take(answer) {
        if (answer.run !== run.id) {
            const known = run.next;
            run = { ...nothing(), id: answer.run };
            if (known > 0) return false; // asked for the wrong run's news: ask again from the beginning
        }
        const fromStart = run.asked === 0;
        run.status = answer;
        run.events.push(...answer.events);
        run.next = answer.next;
        run.loss = fromStart ? answer.loss : run.loss.concat(answer.loss);
        run.norm = fromStart ? answer.norm : run.norm.concat(answer.norm);
        for (const [group, points] of Object.entries(answer.learning_rates)) {
            run.rates[group] = fromStart ? points : (run.rates[group] || []).concat(points);
        }
        lt.noticed(answer);
        return true;
    }

    async function ask() {
        // A long curve is fetched anew now and then, thinned by the server, so that the page stays light.
        run.asked = run.loss.length > 2000 ? 0 : lastStep(run.loss);
        const response = await fetch(lt.url(`status?since=${run.next}&after=${run.asked}`), { cache: "no-store" });
        if (!response.ok) throw new Error(`status ${response.status}`);
        return take(await response.json());
    }

    // --- polling ----------------------------------------------------------------------------------
    let timer = null;
    let asking = false;

    const isVisible = () => !document.hidden && tab() !== null && tab().offsetParent !== null;

    async function poll() {
        clearTimeout(timer);
        if (asking) return;
        asking = true;
        let isKnown = true;
        if (isVisible()) {
            try {
                isKnown = await ask();
                tab().dataset.ltOffline = "";
            } catch {
                if (tab()) tab().dataset.ltOffline = "yes";
            }
            render();
        }
        asking = false;
        const isDrawing = run.status && run.status.grid && run.status.grid.state === "drawing";
        const isLive = isDrawing || (run.status && LIVE.includes(run.status.state));
        const pause = !isKnown ? 0 : isLive || !isVisible() ? BUSY_MS : IDLE_MS;
        timer = setTimeout(poll, pause);
    }
    const pollSoon = (milliseconds = 150) => {
        clearTimeout(timer);
        timer = setTimeout(poll, milliseconds);
    };

    // --- drawing ----------------------------------------------------------------------------------
    /** The places that Python's panels leave for us, and who fills them. */
    const places = {
        strip: drawStrip,
        figures: drawFigures,
        log: drawLog,
        curves: (place) => lt.drawCurves(place, run),
        "sample-tools": (place) => lt.drawSampleTools(place, run),
        queue: (place) => lt.drawQueue(place, run.status),
        runs: (place) => lt.drawRuns(place),
        chart: (place) => lt.drawChart(place, run),
        samples: (place) => lt.drawSamples(place, run),
        grid: (place) => lt.drawGrid(place, run),
        "grid-status": drawGridStatus,
        files: drawFiles,
        pictures: (place) => lt.drawDataset(place),
        concepts: (place) => lt.drawConcepts(place),
        tools: (place) => lt.drawTools(place),
        doctor: (place) => lt.drawDoctor(place),
        captions: (place) => lt.drawCaptions(place),
        search: (place) => lt.drawSearch(place),
        changed: (place) => lt.markChanged(place),
        helps: addTooltips,
    };

    function render() {
        const root = tab();
        if (!root) return;
        const state = run.status ? run.status.state : "idle";
        const has = (kind) => run.events.some((event) => event.kind === kind);
        root.dataset.ltState = state;
        const isFilled = root.querySelector("[data-lt='restored']") !== null || Date.now() - opened > FILL_MS;
        root.dataset.ltFilling = isFilled ? "" : "yes";
        root.dataset.ltLive = LIVE.includes(state) ? "yes" : "";
        root.dataset.ltRun = run.id ? "yes" : "";
        root.dataset.ltGrid = has("GridDrawn") || (run.status && run.status.grid && run.status.grid.token) ? "yes" : "";
        root.dataset.ltFiles = has("LoraWritten") ? "yes" : "";
        for (const [name, draw] of Object.entries(places)) {
            const place = root.querySelector(`[data-lt="${name}"]`);
            if (place) draw(place);
        }
        markProblems(root);
    }

    const progressShare = (status) => (status.total ? Math.min(1, status.done / status.total) : 0);

    function headline(status) {
        if (!status || status.state === "idle") return "Choose pictures, look at the plan, start.";
        if (!LIVE.includes(status.state)) return status.message;
        if (status.state === "stopping") return "Stops as soon as this step is done; a picture the webui is drawing is finished first.";
        const phase = PHASES[status.phase] || "Preparing";
        const facts = [phase];
        if (status.total) facts.push(`${whole(status.done)} of ${whole(status.total)}`);
        if (status.phase !== "train" && status.epoch) facts.push(`after epoch ${status.epoch}`);
        if (status.phase === "train" && status.epochs) facts.push(`epoch ${Math.max(1, status.epoch)} of ${status.epochs}`);
        return facts.join(" · ");
    }

    function drawStrip(place) {
        const status = run.status || { state: "idle" };
        if (!place.firstChild) {
            place.append(
                make("div", { className: "lt-strip" },
                    make("span", { className: "lt-pill" }),
                    make("span", { className: "lt-headline" }),
                    make("span", { className: "lt-eta" })),
                make("div", { className: "lt-progress", role: "progressbar" }, make("span")),
            );
        }
        const isLive = LIVE.includes(status.state);
        const share = status.state === "finished" ? 1 : isLive ? progressShare(status) : 0;
        const offline = tab().dataset.ltOffline === "yes";
        place.querySelector(".lt-pill").textContent = offline ? "No connection" : STATES[status.state];
        place.querySelector(".lt-headline").textContent = offline
            ? "The server does not answer; a running training goes on there."
            : headline(status);
        const remaining = isLive && status.state === "running" ? status.eta_seconds : null;
        place.querySelector(".lt-eta").textContent = remaining === null || remaining === undefined ? "" : `${lt.clock(remaining)} left`;
        const bar = place.querySelector(".lt-progress");
        bar.firstChild.style.width = `${(100 * share).toFixed(2)}%`;
        bar.classList.toggle("lt-unknown", isLive && !status.total && status.state === "running");
        bar.setAttribute("aria-valuenow", Math.round(100 * share));
    }

    function drawFigures(place) {
        const status = run.status;
        if (!status || !run.id) return;
        const smooth = lt.smoothed(run.loss, lt.smoothing());
        const rates = Object.entries(run.rates).map(([group, points]) => [group.replace(/_/g, " ").replace("unet", "UNet"), points]);
        const figures = [
            ["Epoch", status.epochs ? `${whole(status.epoch)} / ${whole(status.epochs)}` : "–"],
            ["Step", status.total_steps ? `${whole(status.step)} / ${whole(status.total_steps)}` : "–"],
            ["Loss", smooth.length ? smooth[smooth.length - 1].toFixed(4) : "–"],
            speed(status.step_seconds),
            ["Time left", LIVE.includes(status.state) ? lt.clock(status.eta_seconds) : "–"],
            ...(status.memory ? [["GPU memory (GiB)", `${status.memory.used_gib.toFixed(1)} / ${status.memory.total_gib.toFixed(0)}`]] : []),
            ...rates.map(([group, points]) => [`LR ${group}`, lt.rate(points[points.length - 1][1]), points]),
        ];
        place.replaceChildren(make("div", { className: "lt-tiles" }, ...figures.map(([name, value, points]) =>
            make("div", { className: "lt-tile" }, make("b", {}, value), make("span", {}, name),
                points ? lt.sparkline(points) : null))));
    }

    const speed = (seconds) => {
        if (!seconds) return ["Steps / second", "–"];
        const perSecond = 1 / seconds;
        if (perSecond < 1) return ["Seconds / step", seconds.toFixed(1)];
        return ["Steps / second", perSecond.toFixed(perSecond < 10 ? 1 : 0)];
    };

    // --- the log ----------------------------------------------------------------------------------
    const numbers = (values) => Object.entries(values)
        .map(([name, value]) => `${name.replace(/_/g, " ")} ${value === null ? "–" : Number(value.toPrecision(3))}`)
        .join(", ");
    const fileName = (path) => path.split(/[\\/]/).pop();

    const SENTENCES = {
        PhaseStarted: (e) => `${PHASES[e.phase]}${e.total ? ` (${whole(e.total)})` : ""}`,
        PhaseEnded: (e) => `${PHASES[e.phase]}: done in ${e.seconds < 10 ? e.seconds.toFixed(1) + " s" : lt.clock(e.seconds)}`,
        Planned: (e) => `${whole(e.images)} pictures` +
            (e.regularisation_images ? ` and ${whole(e.regularisation_images)} for regularisation` : "") +
            `: ${whole(e.epochs)} epochs of ${whole(e.steps_per_epoch)} steps, ${whole(e.total_steps)} in all`,
        Workload: (e) => `${(e.pixels_per_step / 1e6).toFixed(2)} megapixels a step on ${e.device === "cpu" ? "the processor" : e.device}`,
        EpochDone: (e) => `Epoch ${e.epoch} ended at step ${whole(e.step)}` +
            (e.mean_loss === null ? "" : `, mean loss ${e.mean_loss.toFixed(4)}`),
        LoraWritten: (e) => `Written: ${fileName(e.path)}`,
        LoraRemoved: (e) => `Removed, as only the last files are kept: ${fileName(e.path)}`,
        StateSaved: (e) => `Kept: the run can go on from step ${whole(e.step)}`,
        Resumed: (e) => `Goes on after step ${whole(e.step)}`,
        GridDrawn: () => "The grid is drawn",
        Measured: (e) => `${e.epoch ? `Epoch ${e.epoch}` : "Without LoRA"}: ${numbers(e.values)}`,
        Noted: (e) => (e.where ? `${e.where}: ` : "") + e.message,
        StateChanged: (e) => STATES[e.state] + (e.message ? `. ${e.message}` : ""),
    };
    const level = (e) => (e.kind === "Noted" ? e.level : e.kind === "StateChanged" && e.state === "failed" ? "error" : "");
    const timeOfDay = (e) => (e.time ? new Date(e.time * 1000).toTimeString().slice(0, 8) : "");

    function drawLog(place) {
        if (!place.firstChild || place.dataset.run !== String(run.id)) {
            const copy = make("button", { className: "lt-small", type: "button" }, "Copy");
            copy.onclick = () => lt.copy(logText(), copy);
            place.replaceChildren(make("ol", { className: "lt-log" }), copy);
            Object.assign(place.dataset, { run: String(run.id), told: "0" });
        }
        const list = place.firstChild;
        const isAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 30;
        const fresh = run.events.slice(Number(place.dataset.told)).filter((event) => SENTENCES[event.kind]);
        for (const event of fresh) {
            list.append(make("li", { className: level(event) ? `lt-${level(event)}` : "" },
                make("time", {}, timeOfDay(event)), make("span", {}, SENTENCES[event.kind](event))));
        }
        place.dataset.told = String(run.events.length);
        if (fresh.length && isAtEnd) list.scrollTop = list.scrollHeight;
    }

    const logText = () => run.events.filter((event) => SENTENCES[event.kind])
        .map((event) => `${timeOfDay(event)} ${SENTENCES[event.kind](event)}`).join("\n");

    // --- the webui's own grid ---------------------------------------------------------------------
    function drawGridStatus(place) {
        const grid = (run.status && run.status.grid) || { state: "idle", done: 0, total: 0 };
        const told = {
            idle: "",
            drawing: `The webui draws picture ${whole(grid.done + 1)} of ${whole(grid.total)} of ${grid.run}. Its Interrupt button ends that.`,
            done: `Drawn: ${grid.path}`,
            failed: grid.message,
        }[grid.state];
        if (place.textContent !== told) place.textContent = told;
    }

    // --- the files --------------------------------------------------------------------------------
    function drawFiles(place) {
        const files = run.events.filter((event) => event.kind === "LoraWritten");
        const mark = `${run.id}/${run.events.length}`;
        if (!files.length || place.dataset.mark === mark) return;
        place.dataset.mark = mark;
        const measured = Object.fromEntries(run.events.filter((e) => e.kind === "Measured").map((e) => [e.epoch, e.values]));
        const ended = Object.fromEntries(run.events.filter((e) => e.kind === "EpochDone").map((e) => [e.epoch, e.mean_loss]));
        const names = [...new Set(Object.values(measured).flatMap((values) => Object.keys(values)))];
        const heads = ["Epoch", "File", "Step", "Mean loss", ...names.map((name) => name.replace(/_/g, " ")), ""];
        const number = (value) => make("td", { className: "lt-number" }, value === null || value === undefined ? "–" : String(Number(value.toPrecision(3))));
        const rows = files.map((file) => make("tr", {},
            make("td", { className: "lt-number" }, String(file.epoch)),
            make("td", { className: "lt-file", title: file.path }, fileName(file.path)),
            make("td", { className: "lt-number" }, whole(file.step)),
            number(ended[file.epoch]),
            ...names.map((name) => number((measured[file.epoch] || {})[name])),
            make("td", { className: "lt-actions" },
                lt.useButton(fileName(file.path), lt.triggersOf(run.status)),
                copyButton("Copy path", file.path))));
        place.replaceChildren(make("div", { className: "lt-scroll" }, make("table", { className: "lt-table" },
            make("thead", {}, make("tr", {}, ...heads.map((head, column) =>
                make("th", { className: column === 1 || !head ? "" : "lt-number" }, head)))),
            make("tbody", {}, ...rows))));
    }

    lt.copyButton = copyButton;
    lt.fileName = fileName;
    lt.poll = () => pollSoon();
    function copyButton(label, text) {
        const button = make("button", { className: "lt-small", type: "button", title: text }, label);
        button.onclick = () => lt.copy(text, button);
        return button;
    }

    // --- the form ---------------------------------------------------------------------------------
    function addTooltips(place) {
        if (!place.helps) place.helps = JSON.parse(place.dataset.helps);
        const texts = Object.entries(place.helps.parameters).map(([id, known]) => [id, known.help]);
        for (const [id, help] of [...texts, ...Object.entries(place.helps.tooltips)]) {
            const field = page().querySelector(`#${id}`);
            if (field && field.title !== help) field.title = help;
        }
    }

    /** Fields named in the list of problems get a mark; the list itself is drawn by Python. */
    function markProblems(root) {
        const problems = [...root.querySelectorAll("#lora_train_checked [data-where]")];
        const levels = Object.fromEntries(problems.reverse().map((item) => [`lora_train_${item.dataset.where}`, item.className]));
        root.querySelectorAll("[data-lt-problem]").forEach((field) => {
            if (!(field.id in levels)) delete field.dataset.ltProblem;
        });
        for (const [id, name] of Object.entries(levels)) {
            const field = root.querySelector(`#${id}`);
            if (field && field.dataset.ltProblem !== name) field.dataset.ltProblem = name;
        }
    }

    /** Brings a field into view by its id, unfolding its tier first; some gradio versions build it only then. */
    lt.showField = (id, tries = 10) => {
        const field = page().querySelector(`#${id}`);
        if (!field || field.offsetParent === null) {
            unfold(id);
            if (tries) setTimeout(() => lt.showField(id, tries - 1), 100);
            return;
        }
        field.scrollIntoView({ behavior: "smooth", block: "center" });
        const input = field.querySelector("input, textarea, select");
        if (input) input.focus({ preventScroll: true });
    };

    function unfold(id) {
        const helps = page().querySelector("[data-lt='helps']");
        const known = helps && helps.helps && helps.helps.parameters[id];
        const label = known && page().querySelector(`#lora_train_${known.tier} .label-wrap`);
        if (label && !label.classList.contains("open")) label.click();
    }

    /** A moment after the last change the form is kept on the server, and judged. */
    let keeping = null;
    function keepSoon(event) {
        const isForm = event.target.closest && event.target.closest("#lora_train_root") && !event.target.dataset.ltOwn;
        if (!isForm) return;
        clearTimeout(keeping);
        keeping = setTimeout(() => lt.press("keep"), KEEP_FORM_MS);
    }

    function pressed(event) {
        if (!event.target.closest) return;
        const fix = event.target.closest("#lora_train_root [data-lt-fix]");
        const item = event.target.closest("#lora_train_root .lt-problems [data-where]");
        if (fix) lt.change("fix", { number: Number(fix.dataset.ltFix) });
        else if (item) lt.showField(`lora_train_${item.dataset.where}`);
        if (event.target.closest("#lora_train_panels [role=tab], #lora_train_panels .tab-nav button")) setTimeout(drawSoon, 60);
        if (event.target.closest("#lora_train_start, #lora_train_actions, #lora_train_grid_draw")) [200, 800, 2000].forEach((ms) => setTimeout(poll, ms));
    }

    // --- start ------------------------------------------------------------------------------------
    let drawing = false;
    function drawSoon() {
        if (drawing) return;
        drawing = true;
        requestAnimationFrame(() => {
            drawing = false;
            render();
        });
    }

    /** Panels appear late, and are built anew by some gradio versions: draw what is known into new places. */
    function watch() {
        const isOurs = (node) => node.nodeType === 1 && (node.matches("[data-lt], [data-lt-looked], [data-where]") ||
            node.querySelector("[data-lt], [data-lt-looked], [data-where]"));
        new MutationObserver((changes) => {
            if (changes.some((change) => [...change.addedNodes].some(isOurs))) drawSoon();
        }).observe(document.body, { childList: true, subtree: true });
        for (const kind of ["input", "change"]) document.addEventListener(kind, keepSoon, true);
        document.addEventListener("click", pressed, true);
        document.addEventListener("visibilitychange", () => pollSoon());
        window.addEventListener("resize", drawSoon);
        pollSoon(0);
    }

    if (document.body) watch();
    else document.addEventListener("DOMContentLoaded", watch);
})();
