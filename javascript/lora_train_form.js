/* The form: tooltips, marks at fields with problems, going to a field, and saving the draft. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const SAVE_DRAFT_MS = 1200;
    const PANELS = {
        Dataset: "Folders and concepts, the plan, and a check of the images",
        Captions: "Browse, edit and create captions",
        Train: "All settings, presets and the Start button",
        Monitor: "Progress of the training: loss, samples, log",
        Results: "Files, grids and past runs",
        Tools: "Check, convert and merge LoRA files",
    };

    lt.addTooltips = () => {
        const { parameters, tooltips } = lt.pageData();
        const helps = Object.entries(parameters).map(([id, parameter]) => [id, parameter.help]);
        for (const [id, help] of [...helps, ...Object.entries(tooltips)]) {
            const field = lt.page().querySelector(`#${id}`);
            if (field && field.title !== help) field.title = help;
        }
        for (const tab of lt.page().querySelectorAll("#lora_train_panels [role=tab], #lora_train_panels .tab-nav button")) {
            const help = PANELS[tab.textContent.trim()];
            if (help && tab.title !== help) tab.title = help;
        }
    };

    let hasTried = false;
    const isEmpty = (root, where) => [...root.querySelectorAll(`#lora_train_${where} input`)].every((input) => !input.value);

    /** Mark the fields in the list of problems. */
    lt.markProblems = (root) => {
        const problems = [...root.querySelectorAll("#lora_train_form_check [data-where]")];
        // A box that nobody has filled in yet is not an error before Scan or Start is pressed.
        const isUntouched = (item) => !hasTried && item.dataset.where === "concepts_1_folder" && isEmpty(root, item.dataset.where);
        const levels = Object.fromEntries(problems.reverse().filter((item) => !isUntouched(item)).map((item) => [`lora_train_${item.dataset.where}`, item.className]));
        root.querySelectorAll("[data-lt-problem]").forEach((field) => {
            if (!(field.id in levels)) delete field.dataset.ltProblem;
        });
        for (const [id, name] of Object.entries(levels)) {
            const field = root.querySelector(`#${id}`);
            if (field && field.dataset.ltProblem !== name) field.dataset.ltProblem = name;
        }
    };

    /** Show something of ours below the input of a field. */
    lt.extendField = (field, added) => {
        field.append(added);
        field.classList.add("lt-extended");
    };

    /** Below each field that is a share of the run: how many steps it is. Gradio may rebuild a field, so check all. */
    lt.markDurations = (mark) => {
        const notes = JSON.parse(mark.dataset.notes);
        document.querySelectorAll("#lora_train_root .lt-steps").forEach((old) => {
            if (notes[old.parentElement.id] !== old.textContent) old.remove();
        });
        for (const [id, note] of Object.entries(notes)) {
            const field = document.getElementById(id);
            if (field && !field.querySelector(":scope > .lt-steps")) lt.extendField(field, lt.make("p", { className: "lt-steps" }, note));
        }
    };

    /** The distribution of the drawn timesteps, across all columns below the settings that choose it. */
    lt.markTimesteps = (mark) => {
        const field = document.getElementById("lora_train_timestep_shift");
        const chart = mark.querySelector(".lt-timesteps");
        if (!field || !chart) return;
        const old = field.parentElement.querySelector(":scope > .lt-timesteps");
        if (old && old.innerHTML === chart.innerHTML) return;
        if (old) old.remove();
        field.after(chart.cloneNode(true));
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
        const parameter = (lt.pageData() || { parameters: {} }).parameters[id];
        const label = parameter && lt.page().querySelector(`#lora_train_${parameter.tier} .label-wrap`);
        if (label && !label.classList.contains("open")) label.click();
    }

    /** Save and check the form on the server shortly after the last change. */
    let saveTimer = null;
    lt.saveDraftSoon = (event) => {
        const isForm = event.target.closest && event.target.closest("#lora_train_root") && !event.target.dataset.ltOwn;
        if (!isForm) return;
        clearTimeout(saveTimer);
        saveTimer = setTimeout(() => lt.press("save_draft"), SAVE_DRAFT_MS);
    };

    lt.handleClick = (event) => {
        if (!event.target.closest) return;
        const fix = event.target.closest("#lora_train_root [data-lt-fix]");
        const item = event.target.closest("#lora_train_root .lt-problems [data-where]");
        if (event.target.closest("#lora_train_start, #lora_train_enqueue, #lora_train_scan")) hasTried = true;
        if (fix) lt.applyChange("fix", { number: Number(fix.dataset.ltFix) });
        else if (event.target.closest("#lora_train_root [data-lt-undo]")) lt.applyChange("form-undo", {});
        else if (item) lt.showField(`lora_train_${item.dataset.where}`);
        if (event.target.closest("#lora_train_panels [role=tab], #lora_train_panels .tab-nav button")) setTimeout(lt.drawSoon, 60);
        if (event.target.closest("#lora_train_start, #lora_train_actions")) lt.pollOften();
    };
})();
