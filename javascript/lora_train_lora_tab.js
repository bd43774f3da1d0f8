/* The webui's own Lora tab: reloaded when training has written files or card images, without the user's Refresh. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const PERIOD_MS = 5000;
    const NO_CURVES = 2000000000; // curves after this step: none
    const KINDS = ["LoraWritten", "LoraRemoved", "SampleDrawn"]; // a card's image is written with an epoch's samples
    const page = () => (typeof gradioApp === "function" ? gradioApp() : document);
    const reloads = () => ["txt2img", "img2img"].map((tab) => page().querySelector(`#${tab}_lora_extra_refresh_internal`)).filter(Boolean);

    let run; // undefined until the first answer: the tab already shows what was there when the page was loaded
    let next = 0;
    let isStale = false;

    async function look() {
        if (document.hidden || !reloads().length) return;
        const response = await fetch(lt.url(`status?since=${next}&after=${NO_CURVES}`), { cache: "no-store" });
        if (!response.ok) return;
        const answer = await response.json();
        if (run !== undefined && answer.run !== run) {
            run = answer.run;
            next = 0; // another run: its events from the first one, at the next look
            return;
        }
        const hasNews = run !== undefined && answer.events.some((event) => KINDS.includes(event.kind));
        run = answer.run;
        next = answer.next;
        isStale = isStale || hasNews;
        if (isStale && !hasNews && !isInUse()) { // wait until an epoch's files and images are complete
            isStale = false;
            reloads().forEach((button) => button.dispatchEvent(new Event("click")));
        }
    }

    /** Whether the user is typing in one of these tabs, for example in the search field. */
    const isInUse = () => Boolean(document.activeElement && document.activeElement.closest("[id$='_extra_tabs'] input, [id$='_extra_tabs'] textarea"));

    setInterval(() => look().catch(() => null), PERIOD_MS);
})();
