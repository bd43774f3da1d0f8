/* A sheet: a table of images with a column for each prompt, control prompts last, and a row for each epoch. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);

    /** A row with the titles of the two blocks; null if there are no control prompts. */
    function blockTitles({ concept, control }) {
        if (!control) return null;
        const title = (columns, text, help, className) => (columns
            ? [make("th", { colSpan: columns, className, title: help }, make("b", {}, text))] : []);
        return make("tr", { className: "lt-blocks" }, make("th", {}),
            ...title(concept, "Should change", "Prompts of the concept: the LoRA must change them", ""),
            ...title(control, "Control: should not change", "As far as these prompts change with the LoRA, it bleeds", concept ? "lt-control" : ""));
    }

    /** The sheet as an element: `prompts` and `rows` are the titles, `concept` and `control` the numbers of columns,
        `table` has {token, title, text} or null for each cell. `fill(table)` on the element shows new cells. */
    lt.sheetTable = (sheet) => {
        const border = (column) => (sheet.control && sheet.concept && column === sheet.concept ? "lt-control" : "");
        const cells = sheet.table.map((row) => row.map((_, column) => make("td", { className: border(column) })));
        const element = make("div", { className: "lt-scroll" }, make("table", { className: "lt-sheet" },
            make("thead", {}, blockTitles(sheet), make("tr", {}, make("th", {}),
                ...sheet.prompts.map((prompt, column) => make("th", { title: prompt, className: border(column) }, make("span", {}, prompt))))),
            make("tbody", {}, ...cells.map((row, r) => make("tr", {}, make("th", {}, sheet.rows[r]), ...row)))));
        const view = { table: sheet.table, element };
        element.fill = (table) => {
            view.table = table;
            table.forEach((row, r) => row.forEach((entry, c) => {
                const token = entry ? entry.token : "";
                if (cells[r][c].dataset.token === token) return;
                cells[r][c].dataset.token = token;
                cells[r][c].replaceChildren(entry ? thumbnail(view, entry, r, c) : make("span", { className: "lt-waiting" }));
            }));
            lt.refreshView(view);
        };
        element.fill(sheet.table);
        return element;
    };

    function thumbnail(view, entry, row, column) {
        const name = `${entry.title}: ${entry.text}`;
        const button = make("button", { type: "button", className: "lt-thumb", title: name },
            make("img", { src: lt.url(`thumbnail/${entry.token}`), alt: name, loading: "lazy" }));
        button.onclick = () => lt.enlarge(view.table, row, column, view);
        return button;
    }
})();
