/* The state of the run: polled once a second while the tab is visible, and drawn into the containers of the panels by
   `renderers`. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const BUSY_MS = 1000;
    const IDLE_MS = 4000;
    const FILL_MS = 8000; // the form is unlocked after this time even if it was not filled in
    const opened = Date.now();
    const tab = () => lt.page().querySelector("#lora_train_root");

    // --- the run ----------------------------------------------------------------------------------
    const nothing = () => ({ id: null, next: 0, status: null, events: [], loss: [], norm: [], memory: [], rates: {} });
    let run = nothing();

    const lastStep = (points) => (points.length ? points[points.length - 1][0] : 0);

    function handleStatus(answer) {
        if (answer.run !== run.id) {
            const known = run.next;
            run = { ...nothing(), id: answer.run };
            if (known > 0) return false; // a new run: fetch everything
        }
        const fromStart = run.after === 0;
        run.status = answer;
        run.events.push(...answer.events);
        run.next = answer.next;
        run.loss = fromStart ? answer.loss : run.loss.concat(answer.loss);
        run.norm = fromStart ? answer.norm : run.norm.concat(answer.norm);
        run.memory = fromStart ? answer.memory_curve : run.memory.concat(answer.memory_curve);
        for (const [group, points] of Object.entries(answer.learning_rates)) {
            run.rates[group] = fromStart ? points : (run.rates[group] || []).concat(points);
        }
        lt.notifyAtEnd(answer);
        return true;
    }

    async function fetchStatus() {
        // Long curves are reloaded now and then, thinned by the server, to keep the page light.
        run.after = run.loss.length > 2000 ? 0 : lastStep(run.loss);
        const response = await fetch(lt.url(`status?since=${run.next}&after=${run.after}`), { cache: "no-store" });
        if (!response.ok) throw new Error(`status ${response.status}`);
        return handleStatus(await response.json());
    }

    // --- polling ----------------------------------------------------------------------------------
    let timer = null;
    let isFetching = false;

    const isVisible = () => !document.hidden && tab() !== null && tab().offsetParent !== null;

    async function poll() {
        clearTimeout(timer);
        if (isFetching) return;
        isFetching = true;
        let isKnown = true;
        if (isVisible()) {
            try {
                isKnown = await fetchStatus();
                tab().dataset.ltOffline = "";
            } catch {
                if (tab()) tab().dataset.ltOffline = "yes";
            }
            render();
        }
        isFetching = false;
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
    /** Poll several times after a button was pressed, as its effect shows with a delay. */
    lt.pollOften = () => [200, 800, 2000].forEach((ms) => setTimeout(poll, ms));

    // --- drawing ----------------------------------------------------------------------------------
    /** Functions that draw into the elements with these `data-lt` names. */
    const renderers = {
        strip: (container) => lt.drawStrip(container, run, tab()),
        figures: (container) => lt.drawFigures(container, run),
        log: (container) => lt.drawLog(container, run),
        curves: (container) => lt.drawCurves(container, run),
        "sample-tools": (container) => lt.drawSampleTools(container, run),
        queue: (container) => lt.drawQueue(container, run.status),
        sweep: (container) => lt.drawSweep(container),
        comparison: (container) => lt.drawComparison(container, run),
        runs: (container) => lt.drawRuns(container),
        chart: (container) => lt.drawChart(container, run),
        samples: (container) => lt.drawSamples(container, run),
        grid: (container) => lt.drawGrid(container, run),
        "epoch-grid": (container) => lt.drawEpochGrid(container, run),
        files: (container) => lt.drawFiles(container, run),
        images: (container) => lt.drawDataset(container),
        concepts: (container) => lt.drawConcepts(container),
        tools: (container) => lt.drawTools(container),
        checkup: (container) => lt.drawCheckup(container),
        captions: (container) => lt.drawCaptions(container),
        search: (container) => lt.drawSearch(container),
        changed: (container) => lt.markChanged(container),
        durations: (container) => lt.markDurations(container),
        timesteps: (container) => lt.markTimesteps(container),
        tooltips: () => lt.addTooltips(),
    };

    function render() {
        const root = tab();
        if (!root) return;
        const state = run.status ? run.status.state : "idle";
        const isEnded = ["finished", "stopped", "failed"].includes(state);
        root.dataset.ltEnded = isEnded ? "yes" : "";
        const has = (kind) => run.events.some((event) => event.kind === kind);
        root.dataset.ltState = state;
        const isFilled = root.querySelector("[data-lt='restored']") !== null || Date.now() - opened > FILL_MS;
        root.dataset.ltFilling = isFilled ? "" : "yes";
        root.dataset.ltLive = lt.LIVE.includes(state) ? "yes" : "";
        root.dataset.ltRun = run.id ? "yes" : "";
        root.dataset.ltGrid = has("GridDrawn") ? "yes" : "";
        root.dataset.ltFiles = has("LoraWritten") ? "yes" : "";
        for (const [name, draw] of Object.entries(renderers)) {
            const container = root.querySelector(`[data-lt="${name}"]`);
            if (container) draw(container);
        }
        lt.refreshGrids(root, run.status);
        lt.markProblems(root);
        lt.drawPickers();
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

    /** Panels appear late, and some gradio versions rebuild them: redraw when they are added. */
    function watch() {
        const isOurs = (node) => node.nodeType === 1 && (node.matches("[data-lt], [data-lt-scan], [data-where]") ||
            node.querySelector("[data-lt], [data-lt-scan], [data-where]"));
        new MutationObserver((changes) => {
            if (changes.some((change) => [...change.addedNodes].some(isOurs))) drawSoon();
        }).observe(document.body, { childList: true, subtree: true });
        for (const kind of ["input", "change"]) document.addEventListener(kind, (event) => lt.saveDraftSoon(event), true);
        document.addEventListener("click", (event) => lt.handleClick(event), true);
        document.addEventListener("visibilitychange", () => pollSoon());
        window.addEventListener("resize", drawSoon);
        pollSoon(0);
    }

    // Wait until the other scripts are loaded.
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", watch);
    else setTimeout(watch, 0);
})();
