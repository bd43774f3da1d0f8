/* Folders of the Dataset panel: Browse lists those on the server, and dropped images are uploaded into them. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const button = (label, title, work) => {
        const made = make("button", { type: "button", className: "lt-small", title }, label);
        made.onclick = work;
        return made;
    };

    // --- browse -----------------------------------------------------------------------------------
    /** A list of sub-folders in `place`; `choose(path)` is called with the chosen folder. */
    async function list(place, folder, choose) {
        const answer = await lt.request("browse", { folder }).catch(async (problem) => {
            if (!folder) throw problem;
            place.problem = problem.message; // a folder that cannot be listed: start from the top
            return lt.request("browse", {});
        }).catch(lt.notify);
        if (!answer) return;
        const problem = place.problem ? make("p", { className: "lt-bad" }, place.problem) : null;
        place.problem = "";
        const images = (number) => (number ? lt.count(number, "image") : "");
        const go = (path) => () => list(place, path, choose);
        const rows = answer.folders.map((one) => {
            const row = make("button", { type: "button", className: "lt-hit", title: one.path }, make("b", {}, one.name), make("span", {}, images(one.images)));
            row.onclick = go(one.path);
            return row;
        });
        place.replaceChildren(...[problem,
            make("p", { className: "lt-faint lt-browse-path" }, answer.folder ? `${answer.folder} ${images(answer.images)}` : "Folders on the computer that the trainer runs on"),
            make("div", { className: "lt-toolbar" },
                answer.folder ? button("Use this folder", "Enter it as the folder of the concept", () => choose(answer.folder)) : null,
                answer.folder ? button("Up", "Parent folder", go(answer.above)) : null,
                button("Close", "Keep the folder as it was", () => place.replaceChildren())),
            make("div", { className: "lt-hits lt-browse-list" }, ...rows),
            answer.more ? make("p", { className: "lt-faint" }, `and ${lt.whole(answer.more)} more; type the path to go to one of them`) : null].filter(Boolean));
    }

    /** For a card: the button, and the list below it. */
    lt.browseButton = (folder, choose) => {
        const place = make("div", { className: "lt-browse" });
        const open = button("Browse…", "Choose a folder on the computer that the trainer runs on", () => (place.firstChild ? place.replaceChildren() : list(place, folder(), choose)));
        return [open, place];
    };

    // --- drop -------------------------------------------------------------------------------------
    const allOf = (reader) => new Promise((resolve, reject) => {
        const found = [];
        const more = () => reader.readEntries((batch) => {
            found.push(...batch);
            if (batch.length) more();
            else resolve(found);
        }, reject);
        more();
    });

    /** The files of a dropped entry, as [file, name of the sub-folder]; deeper folders are left out. */
    async function filesOf(entry, inside, depth) {
        if (entry.isFile) return entry.name.startsWith(".") ? [] : [[await new Promise((resolve, reject) => entry.file(resolve, reject)), inside]];
        if (depth > 1) return [];
        const parts = await Promise.all((await allOf(entry.createReader())).map((one) => filesOf(one, depth ? entry.name : "", depth + 1)));
        return parts.flat();
    }

    const contentOf = (file) => new Promise((resolve, reject) => {
        const reader = new FileReader();
        reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
        reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
        reader.readAsDataURL(file);
    });

    /** Upload what was dropped into the folder, or into a new one; `done(folder)` is called if anything arrived. */
    async function upload(transfer, folder, done) {
        const entries = [...transfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry()).filter(Boolean); // before the first await
        const loose = [...transfer.files];
        const found = entries.length ? (await Promise.all(entries.map((entry) => filesOf(entry, "", 0)))).flat() : loose.map((file) => [file, ""]);
        if (!found.length) return lt.notify("Nothing that can be uploaded was dropped. Drop images, or a folder of them.");
        const first = entries.find((entry) => entry.isDirectory);
        const target = folder || (await lt.request("upload-folder", { name: first ? first.name : "images" })).folder;
        const problems = [];
        let arrived = 0;
        for (const [file, inside] of found) {
            lt.notify(`Uploading ${arrived + problems.length + 1} of ${found.length}: ${file.name}`);
            try {
                await lt.request("upload", { folder: target, inside, name: file.name, content: await contentOf(file) });
                arrived += 1;
            } catch (problem) {
                problems.push(problem.message);
            }
        }
        const failed = problems.length ? ` ${problems.length} not uploaded: ${problems.slice(0, 3).join(" ")}` : "";
        lt.notify(`${lt.count(arrived, "file")} uploaded to ${target}.${failed}`);
        return arrived ? done(target) : null;
    }

    /** Let files be dropped onto an element; `folder()` is where they go, "" for a new folder. */
    lt.acceptDrop = (element, folder, done) => {
        const hasFiles = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
        const mark = (isOver) => element.classList.toggle("lt-drop", isOver);
        element.addEventListener("dragover", (event) => {
            if (!hasFiles(event)) return;
            event.preventDefault();
            mark(true);
        });
        element.addEventListener("dragleave", (event) => element.contains(event.relatedTarget) || mark(false));
        element.addEventListener("drop", (event) => {
            mark(false);
            if (!hasFiles(event)) return;
            event.preventDefault();
            event.stopPropagation();
            upload(event.dataTransfer, folder(), done).catch(lt.notify);
        });
    };
})();
