/* The Dataset panel's cards, one per concept. They are drawn from the parameters' declarations and write one JSON
   text into gradio's hidden box `concepts`, which is the form's field. */
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

    /** Changes the concepts as they stand in the box now: the server may have put others there since the cards were
        drawn. Gradio hears of a value only by an input event. */
    function write(place, change) {
        const isShown = place.text === box().value;
        box().value = JSON.stringify(change(tablesOf(box().value)));
        if (isShown) place.text = box().value; // else the cards are drawn again
        box().dispatchEvent(new Event("input", { bubbles: true }));
    }

    // --- one card ---------------------------------------------------------------------------------
    function inputOf(field, value, id, take) {
        const shared = { id, title: field.help };
        if (field.kind === "check") {
            const input = make("input", { ...shared, type: "checkbox", checked: Boolean(value) });
            input.onchange = () => take(input.checked);
            return input;
        }
        if (field.kind === "choice") {
            const input = make("select", shared, ...field.choices.map((name) => make("option", { value: name }, name)));
            input.value = value;
            input.onchange = () => take(input.value);
            return input;
        }
        const input = make("input", { ...shared, type: "text", value: String(value), placeholder: field.placeholder, spellcheck: false });
        input.oninput = () => take(input.value.trim());
        return input;
    }

    /** What stands at its default is left out. */
    function withValue(table, field, given) {
        const { [field.name]: _, ...others } = table;
        return given === field.default || given === "" ? others : { ...others, [field.name]: given };
    }

    function fieldOf(place, tables, number, field) {
        const table = tables[number];
        const id = `lora_train_concepts_${number + 1}_${field.name}`;
        const value = field.name in table ? table[field.name] : field.default;
        const input = inputOf(field, value, `${id}_input`, (given) => {
            write(place, (now) => now.map((other, n) => (n === number ? withValue(other, field, given) : other)));
        });
        const name = make("span", {}, field.label);
        const parts = field.kind === "check" ? [input, name] : [name, input];
        const kind = field.kind === "check" ? "lt-tick" : field.name === "folder" ? "lt-line lt-wide" : "lt-line";
        return make("label", { className: `lt-field ${kind}`, id, title: field.help }, ...parts);
    }

    function cardOf(place, tables, number, fields) {
        const fieldsOf = (isMore) => fields.filter((field) => field.isMore === isMore)
            .map((field) => fieldOf(place, tables, number, field));
        const remove = make("button", { type: "button", className: "lt-small", title: "Take this concept out; its files stay." }, "Remove");
        remove.disabled = tables.length === 1;
        remove.onclick = () => {
            write(place, (now) => now.filter((_, other) => other !== number));
            draw(place);
        };
        const more = fieldsOf(true);
        return make("section", { className: "lt-card lt-concept", "aria-label": `Concept ${number + 1}` },
            make("div", { className: "lt-bar-row" },
                make("h3", { className: "lt-heading" }, titleOf(tables[number], number), make("span", { className: "lt-card-facts" })),
                remove),
            make("div", { className: "lt-fields lt-card-fields" }, ...fieldsOf(false)),
            more.length ? make("details", { className: "lt-skipped", open: place.isOpen }, make("summary", { title: "Settings that other concepts need not share" }, "More for this concept"),
                make("div", { className: "lt-fields lt-card-fields" }, ...more)) : null);
    }

    const titleOf = (table, number) => {
        const name = table.trigger || (table.folder || "").split(/[\\/]/).filter(Boolean).pop();
        return `${table.is_regularisation ? "Regularisation" : "Concept"} ${number + 1}${name ? `: ${name}` : ""}`;
    };

    // --- the place --------------------------------------------------------------------------------
    function draw(place) {
        const fields = JSON.parse(place.dataset.fields);
        const tables = tablesOf(box().value);
        place.text = box().value;
        const add = (label, title, table) => {
            const button = make("button", { type: "button", className: "lt-small", title }, label);
            button.onclick = () => {
                write(place, (now) => [...now, table]);
                draw(place);
                place.querySelector(".lt-concept:last-of-type input").focus();
            };
            return button;
        };
        place.replaceChildren(
            ...tables.map((_, number) => cardOf(place, tables, number, fields)),
            make("div", { className: "lt-adders" },
                add("+ Concept", "Another folder with a concept of its own", {}),
                add("+ Regularisation", "Images of the class without the concept, so that it is not forgotten", { is_regularisation: true })));
        place.facts = "";
    }

    function drawFacts(place) {
        const looked = document.querySelector("[data-lt-looked]");
        const facts = looked ? looked.dataset.cards : "[]";
        if (place.facts === facts) return;
        place.facts = facts;
        const told = JSON.parse(facts);
        place.querySelectorAll(".lt-card-facts").forEach((span, number) => {
            const one = told[number];
            const share = one && one.share !== null ? ` · ${Math.round(100 * one.share)} % of each epoch` : "";
            span.textContent = one ? `${one.images.toLocaleString("en-US")} images${share}` : "";
        });
    }

    /** Draws the cards again whenever the server has put other concepts into the box. */
    lt.drawConcepts = (place) => {
        if (!box()) return;
        if (place.text !== box().value) draw(place);
        drawFacts(place);
    };

    // A box that gradio fills makes no event that a page could hear.
    setInterval(() => {
        const place = document.querySelector("[data-lt='concepts']");
        if (place && place.offsetParent !== null) lt.drawConcepts(place);
    }, 400);
})();
