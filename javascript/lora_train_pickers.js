/* The pickers of files: checkpoints and LoRAs from the folders of the webui, each with what it is or its folder. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);

    const KINDS = {
        checkpoint: {
            list: "checkpoints-list", use: "checkpoints-use", key: "checkpoint", label: "Choose a checkpoint…",
            title: "List the files in the models folder and beside the one above",
            none: "There are no checkpoints in the models folder. Enter a path; the files beside it are listed here.",
        },
        lora: {
            list: "loras-list", use: "loras-use", key: "file", label: "Choose a LoRA…",
            title: "List the LoRA files in all folders of the webui, newest first",
            none: "There are no LoRA files in the folders of the webui. Enter a path; the files beside it are listed here.",
        },
    };
    const FORM = [["checkpoint", "checkpoint"], ["continue_from", "lora"]]; // field → kind

    /** Add a picker below each of these fields of the form, again if gradio has rebuilt the field. */
    lt.drawPickers = () => FORM.forEach(([name, which]) => {
        const field = lt.page().querySelector(`#lora_train_${name}`);
        if (!field || field.querySelector(":scope > .lt-picker")) return;
        const typed = () => (field.querySelector("input, textarea") || { value: "" }).value;
        const { use, key } = KINDS[which];
        lt.extendField(field, lt.picker(which, typed, (path) => lt.applyChange(use, { [key]: path })));
    });

    /** A button that opens the list of files of a kind; `typed()` is the path in use, `choose(path)` takes another. */
    lt.picker = (which, typed, choose) => {
        const kind = KINDS[which];
        const list = make("div", { className: "lt-picker-list" });
        const button = lt.smallButton(kind.label, kind.title, () => toggle(kind, list, typed, choose));
        button.setAttribute("aria-expanded", "false");
        return make("div", { className: "lt-picker" }, button, list);
    };

    async function toggle(kind, list, typed, choose) {
        const button = list.previousSibling;
        const isOpen = button.getAttribute("aria-expanded") === "true";
        button.setAttribute("aria-expanded", String(!isOpen));
        if (isOpen) return list.replaceChildren();
        list.replaceChildren(make("p", { className: "lt-faint" }, "Reading the folder…"));
        const found = await lt.request(kind.list, { [kind.key]: typed() }).catch((problem) => (lt.notify(problem), null));
        if (!found) return list.replaceChildren();
        const close = (path) => {
            button.setAttribute("aria-expanded", "false");
            list.replaceChildren();
            choose(path);
        };
        return list.replaceChildren(...rows(kind, found, typed(), close));
    }

    function rows(kind, found, typed, choose) {
        const row = (name, what, path, isUsable) => {
            const button = make("button", { type: "button", className: "lt-picker-file", title: path || "Leave the field empty", disabled: !isUsable },
                make("b", {}, name), make("span", {}, what));
            if (path === typed) button.setAttribute("aria-current", "true");
            button.onclick = () => choose(path);
            return button;
        };
        const own = found.current ? [row(found.current, "used while the field is empty", "", true)] : [];
        const files = found.files.map((file) => row(file.name, file.description || file.problem, file.path, !file.problem));
        const note = found.left_out ? `${lt.count(found.left_out, "more file is", "more files are")} not listed. Enter the path.`
            : found.files.length ? "" : kind.none;
        return [...own, ...files, ...(note ? [make("p", { className: "lt-faint" }, note)] : [])];
    }
})();
