/* The run as the page knows it: asked for once a second while the tab is seen, and drawn into the places that Python's
   panels leave for it. Who draws what is listed in `places`. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const BUSY_MS = 1000;
    const IDLE_MS = 4000;
    const FILL_MS = 8000; // a form that is still not filled in then is given free all the same
    const opened = Date.now();
    const tab = () => lt.page().querySelector("#lora_train_root");

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
        const isLive = isDrawing || (run.status && lt.LIVE.includes(run.status.state));
        const pause = !isKnown ? 0 : isLive || !isVisible() ? BUSY_MS : IDLE_MS;
        timer = setTimeout(poll, pause);
    }
    const pollSoon = (milliseconds = 150) => {
        clearTimeout(timer);
        timer = setTimeout(poll, milliseconds);
    };
    lt.poll = () => pollSoon();
    /** Asked at once and twice later: a button was pressed whose work shows in a moment. */
    lt.pollOften = () => [200, 800, 2000].forEach((ms) => setTimeout(poll, ms));

    // --- drawing ----------------------------------------------------------------------------------
    /** The places that Python's panels leave for us, and who fills them. */
    const places = {
        strip: (place) => lt.drawStrip(place, run, tab()),
        figures: (place) => lt.drawFigures(place, run),
        log: (place) => lt.drawLog(place, run),
        curves: (place) => lt.drawCurves(place, run),
        "sample-tools": (place) => lt.drawSampleTools(place, run),
        queue: (place) => lt.drawQueue(place, run.status),
        runs: (place) => lt.drawRuns(place),
        chart: (place) => lt.drawChart(place, run),
        samples: (place) => lt.drawSamples(place, run),
        grid: (place) => lt.drawGrid(place, run),
        "grid-status": (place) => lt.drawGridStatus(place, run),
        files: (place) => lt.drawFiles(place, run),
        images: (place) => lt.drawDataset(place),
        concepts: (place) => lt.drawConcepts(place),
        tools: (place) => lt.drawTools(place),
        doctor: (place) => lt.drawDoctor(place),
        captions: (place) => lt.drawCaptions(place),
        search: (place) => lt.drawSearch(place),
        changed: (place) => lt.markChanged(place),
        helps: (place) => lt.addTooltips(place),
    };

    function render() {
        const root = tab();
        if (!root) return;
        const state = run.status ? run.status.state : "idle";
        const has = (kind) => run.events.some((event) => event.kind === kind);
        root.dataset.ltState = state;
        const isFilled = root.querySelector("[data-lt='restored']") !== null || Date.now() - opened > FILL_MS;
        root.dataset.ltFilling = isFilled ? "" : "yes";
        root.dataset.ltLive = lt.LIVE.includes(state) ? "yes" : "";
        root.dataset.ltRun = run.id ? "yes" : "";
        root.dataset.ltGrid = has("GridDrawn") || (run.status && run.status.grid && run.status.grid.token) ? "yes" : "";
        root.dataset.ltFiles = has("LoraWritten") ? "yes" : "";
        for (const [name, draw] of Object.entries(places)) {
            const place = root.querySelector(`[data-lt="${name}"]`);
            if (place) draw(place);
        }
        lt.markProblems(root);
    }

    // --- start ------------------------------------------------------------------------------------
    let drawing = false;
    lt.drawSoon = drawSoon;
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
        for (const kind of ["input", "change"]) document.addEventListener(kind, (event) => lt.keepSoon(event), true);
        document.addEventListener("click", (event) => lt.pressed(event), true);
        document.addEventListener("visibilitychange", () => pollSoon());
        window.addEventListener("resize", drawSoon);
        pollSoon(0);
    }

    // Not before the other files are there too.
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", watch);
    else setTimeout(watch, 0);
})();
