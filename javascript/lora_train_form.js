/* The form's side of the page: tooltips, marks of problems, finding a field, and keeping what was typed. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const KEEP_FORM_MS = 1200;
    const PANELS = {
        Dataset: "Folders and concepts, the plan, what is wrong with the images",
        Captions: "Look through, edit and write the captions",
        Train: "Every setting, and the button that starts",
        Monitor: "How the training goes: loss, samples, log",
        Results: "The files and grids of this run and of all before",
        Tools: "Check and convert LoRA files",
    };

    lt.addTooltips = (place) => {
        if (!place.helps) place.helps = JSON.parse(place.dataset.helps);
        const texts = Object.entries(place.helps.parameters).map(([id, known]) => [id, known.help]);
        for (const [id, help] of [...texts, ...Object.entries(place.helps.tooltips)]) {
            const field = lt.page().querySelector(`#${id}`);
            if (field && field.title !== help) field.title = help;
        }
        for (const tab of lt.page().querySelectorAll("#lora_train_panels [role=tab], #lora_train_panels .tab-nav button")) {
            const help = PANELS[tab.textContent.trim()];
            if (help && tab.title !== help) tab.title = help;
        }
    };

    /** Fields named in the list of problems get a mark; the list itself is drawn by Python. */
    lt.markProblems = (root) => {
        const problems = [...root.querySelectorAll("#lora_train_checked [data-where]")];
        const levels = Object.fromEntries(problems.reverse().map((item) => [`lora_train_${item.dataset.where}`, item.className]));
        root.querySelectorAll("[data-lt-problem]").forEach((field) => {
            if (!(field.id in levels)) delete field.dataset.ltProblem;
        });
        for (const [id, name] of Object.entries(levels)) {
            const field = root.querySelector(`#${id}`);
            if (field && field.dataset.ltProblem !== name) field.dataset.ltProblem = name;
        }
    };

    /** Brings a field into view by its id, unfolding its tier first; some gradio versions build it only then. */
    lt.showField = (id, tries = 10) => {
        const field = lt.page().querySelector(`#${id}`);
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
        const helps = lt.page().querySelector("[data-lt='helps']");
        const known = helps && helps.helps && helps.helps.parameters[id];
        const label = known && lt.page().querySelector(`#lora_train_${known.tier} .label-wrap`);
        if (label && !label.classList.contains("open")) label.click();
    }

    /** A moment after the last change the form is kept on the server, and judged. */
    let keeping = null;
    lt.keepSoon = (event) => {
        const isForm = event.target.closest && event.target.closest("#lora_train_root") && !event.target.dataset.ltOwn;
        if (!isForm) return;
        clearTimeout(keeping);
        keeping = setTimeout(() => lt.press("keep"), KEEP_FORM_MS);
    };

    lt.pressed = (event) => {
        if (!event.target.closest) return;
        const fix = event.target.closest("#lora_train_root [data-lt-fix]");
        const item = event.target.closest("#lora_train_root .lt-problems [data-where]");
        if (fix) lt.change("fix", { number: Number(fix.dataset.ltFix) });
        else if (item) lt.showField(`lora_train_${item.dataset.where}`);
        if (event.target.closest("#lora_train_panels [role=tab], #lora_train_panels .tab-nav button")) setTimeout(lt.drawSoon, 60);
        if (event.target.closest("#lora_train_start, #lora_train_actions, #lora_train_grid_draw")) lt.pollOften();
    };
})();
