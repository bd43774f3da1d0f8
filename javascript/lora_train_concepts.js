/* The cards of the Dataset panel, one per concept. They are drawn from the declarations of the parameters and stored as
   JSON in the hidden text box `concepts` of the form. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);

    const box = () => document.querySelector("#lora_train_concepts textarea, #lora_train_concepts input");

    function tablesOf(text) {
        try {
            const tables = JSON.parse(text || "[]");
            return Array.isArray(tables) && tables.length ? tables : [{}];
        } catch {
            return [{}];
        }
    }

    /** Change the concepts that are in the box now: the server may have replaced them since the cards were drawn.
        Gradio notices a new value only through an input event. */
    function write(container, change) {
        const isShown = container.text === box().value;
        box().value = JSON.stringify(change(tablesOf(box().value)));
        if (isShown) container.text = box().value; // otherwise the cards are redrawn
        box().dispatchEvent(new Event("input", { bubbles: true }));
    }

    // --- one card ---------------------------------------------------------------------------------
    function inputOf(field, value, id, onChange) {
        const shared = { id, title: field.help };
        if (field.kind === "check") {
            const input = make("input", { ...shared, type: "checkbox", checked: Boolean(value) });
            input.onchange = () => onChange(input.checked);
            return input;
        }
        if (field.kind === "choice") {
            const input = make("select", shared, ...field.choices.map((name) => make("option", { value: name }, name)));
            input.value = value;
            input.onchange = () => onChange(input.value);
            return input;
        }
        const input = make("input", { ...shared, type: "text", value: String(value), placeholder: field.placeholder, spellcheck: false });
        input.oninput = () => onChange(input.value.trim());
        return input;
    }

    /** The table with a value set; default values are left out. */
    function withValue(table, field, given) {
        const { [field.name]: _, ...others } = table;
        return given === field.default || given === "" ? others : { ...others, [field.name]: given };
    }

    function fieldOf(container, tables, number, field) {
        const table = tables[number];
        const id = `lora_train_concepts_${number + 1}_${field.name}`;
        const value = field.name in table ? table[field.name] : field.default;
        const input = inputOf(field, value, `${id}_input`, (given) => {
            write(container, (now) => now.map((other, n) => (n === number ? withValue(other, field, given) : other)));
        });
        const name = make("span", {}, field.label);
        const parts = field.kind === "check" ? [input, name] : [name, input];
        const kind = field.kind === "check" ? "lt-checkbox" : field.name === "folder" ? "lt-line lt-wide" : "lt-line";
        return make("label", { className: `lt-field ${kind}`, id, title: field.help }, ...parts);
    }

    /** Browse, and images dropped onto the card. */
    function addFolders(container, card, number, fields) {
        const field = fields.find((one) => one.name === "folder");
        const folder = () => tablesOf(box().value)[number].folder || "";
        const choose = (path) => {
            write(container, (now) => now.map((other, n) => (n === number ? withValue(other, field, path) : other)));
            draw(container);
        };
        const [browse, place] = lt.browseButton(folder, choose);
        card.querySelector(`[id$="_folder"]`).after(make("div", { className: "lt-wide" }, browse, place));
        lt.acceptDrop(card, folder, (path) => {
            if (path !== folder()) choose(path);
            setTimeout(() => lt.press("scan"), 300); // gradio reads the form a moment later
        });
        return card;
    }

    function cardOf(container, tables, number, fields) {
        const fieldsOf = (isMore) => fields.filter((field) => field.isMore === isMore)
            .map((field) => fieldOf(container, tables, number, field));
        const remove = make("button", { type: "button", className: "lt-small", title: "Remove this concept. Its files are kept." }, "Remove");
        remove.disabled = tables.length === 1;
        remove.onclick = () => {
            write(container, (now) => now.filter((_, other) => other !== number));
            draw(container);
        };
        const more = fieldsOf(true);
        const card = make("section", { className: "lt-card lt-concept", "aria-label": `Concept ${number + 1}` },
            make("div", { className: "lt-bar-row" },
                make("h3", { className: "lt-heading" }, titleOf(tables[number], number), make("span", { className: "lt-card-facts" })),
                remove),
            make("div", { className: "lt-fields lt-card-fields" }, ...fieldsOf(false)),
            more.length ? make("details", { className: "lt-skipped", open: container.isOpen }, make("summary", { title: "Settings of this concept only" }, "More for this concept"),
                make("div", { className: "lt-fields lt-card-fields" }, ...more)) : null);
        return addFolders(container, card, number, fields);
    }

    /** The folder of the first concept that has one, for images dropped onto the gallery. */
    lt.firstFolder = () => (tablesOf(box() ? box().value : "").find((table) => table.folder) || { folder: "" }).folder;

    const titleOf = (table, number) => {
        const name = table.trigger || (table.folder || "").split(/[\\/]/).filter(Boolean).pop();
        return `${table.is_regularisation ? "Regularisation" : "Concept"} ${number + 1}${name ? `: ${name}` : ""}`;
    };

    // --- layout -----------------------------------------------------------------------------------
    function draw(container) {
        const fields = JSON.parse(container.dataset.fields);
        const tables = tablesOf(box().value);
        container.text = box().value;
        const add = (label, title, table) => {
            const button = make("button", { type: "button", className: "lt-small", title }, label);
            button.onclick = () => {
                write(container, (now) => [...now, table]);
                draw(container);
                container.querySelector(".lt-concept:last-of-type input").focus();
            };
            return button;
        };
        container.replaceChildren(
            ...tables.map((_, number) => cardOf(container, tables, number, fields)),
            make("div", { className: "lt-adders" },
                add("+ Concept", "Add another folder with its own concept", {}),
                add("+ Regularisation", "Add images of the class without the concept, so that the model does not forget the class", { is_regularisation: true })));
        container.facts = "";
    }

    function drawFacts(container) {
        const scanned = document.querySelector("[data-lt-scan]");
        const facts = scanned ? scanned.dataset.cards : "[]";
        if (container.facts === facts) return;
        container.facts = facts;
        const parsed = JSON.parse(facts);
        container.querySelectorAll(".lt-card-facts").forEach((span, number) => {
            const one = parsed[number];
            const share = one && one.share !== null ? ` · ${Math.round(100 * one.share)}% of each epoch` : "";
            span.textContent = one ? `${lt.count(one.images, "image")}${share}` : "";
        });
    }

    /** Redraw the cards when the server has put other concepts into the box. */
    lt.drawConcepts = (container) => {
        if (!box()) return;
        if (container.text !== box().value) draw(container);
        drawFacts(container);
    };

    // Gradio fires no event when it fills a text box.
    setInterval(() => {
        const container = document.querySelector("[data-lt='concepts']");
        if (container && container.offsetParent !== null) lt.drawConcepts(container);
    }, 400);
})();
