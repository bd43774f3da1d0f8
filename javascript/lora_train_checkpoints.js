/* The checkpoint picker below the field of the checkpoint: the files in the models folders, and what each of them is. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const fieldOf = () => lt.page().querySelector("#lora_train_checkpoint");
    const typed = (field) => (field.querySelector("input, textarea") || { value: "" }).value;

    /** Add the button, again if gradio has rebuilt the field. */
    lt.drawCheckpointPicker = () => {
        const field = fieldOf();
        if (!field || field.querySelector(":scope > .lt-picker")) return;
        const list = make("div", { className: "lt-picker-list" });
        const button = lt.smallButton("Choose a checkpoint…", "List the files in the models folder and beside the one above", () => toggle(field, list));
        button.setAttribute("aria-expanded", "false");
        lt.extendField(field, make("div", { className: "lt-picker" }, button, list));
    };

    async function toggle(field, list) {
        const button = list.previousSibling;
        const isOpen = button.getAttribute("aria-expanded") === "true";
        button.setAttribute("aria-expanded", String(!isOpen));
        if (isOpen) return list.replaceChildren();
        list.replaceChildren(make("p", { className: "lt-faint" }, "Reading the folder…"));
        const found = await lt.request("checkpoints-list", { checkpoint: typed(field) }).catch((problem) => (lt.notify(problem), null));
        if (!found) return list.replaceChildren();
        return list.replaceChildren(...rows(field, list, found));
    }

    function rows(field, list, found) {
        const choose = (path) => () => {
            list.previousSibling.setAttribute("aria-expanded", "false");
            list.replaceChildren();
            lt.applyChange("checkpoints-use", { checkpoint: path });
        };
        const row = (name, what, path, isUsable) => {
            const button = make("button", { type: "button", className: "lt-picker-file", title: path || "Leave the field empty", disabled: !isUsable },
                make("b", {}, name), make("span", {}, what));
            if (path === typed(field)) button.setAttribute("aria-current", "true");
            button.onclick = choose(path);
            return button;
        };
        const own = found.current ? [row(found.current, "used while the field is empty", "", true)] : [];
        const files = found.files.map((file) => row(file.name, file.description || file.problem, file.path, !file.problem));
        const note = found.left_out ? `${lt.count(found.left_out, "more file is", "more files are")} not listed. Enter the path.`
            : found.files.length ? "" : "There are no checkpoints in the models folder. Enter a path; the files beside it are listed here.";
        return [...own, ...files, ...(note ? [make("p", { className: "lt-faint" }, note)] : [])];
    }
})();
