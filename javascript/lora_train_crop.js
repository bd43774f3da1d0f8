/* Manual cropping in the Dataset panel: a frame with the shape of a bucket that can be moved and resized. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const percent = (share) => `${(100 * share).toFixed(0)}%`;
    const shape = ([width, height]) => `${width} × ${height}`;

    /** The largest frame with the shape of a bucket, divided by `zoom`, at a position from 0 (left, top) to 1. */
    function frameOf(image, bucket, zoom, across, down) {
        const unit = Math.min(image.width / bucket[0], image.height / bucket[1]) / zoom;
        const width = Math.min(image.width, Math.round(bucket[0] * unit));
        const height = Math.min(image.height, Math.round(bucket[1] * unit));
        return [Math.round((image.width - width) * across), Math.round((image.height - height) * down), width, height];
    }

    const slider = (name, title, { low, high, value }) =>
        make("input", { type: "range", min: low, max: high, step: 0.005, value, className: `lt-k-${name}`, title, "aria-label": title });

    function editor(image, close) {
        const [left, top, width, height] = image.frame;
        const spare = (whole, part, start) => (whole > part ? start / (whole - part) : 0.5);
        const across = slider("across", "Horizontal", { low: 0, high: 1, value: spare(image.width, width, left) });
        const down = slider("down", "Vertical", { low: 0, high: 1, value: spare(image.height, height, top) });
        const [, , widest, highest] = frameOf(image, image.buckets[0], 1, 0, 0);
        const most = Math.max(1, Math.min(widest, highest) / image.min_side);
        const zoom = slider("zoom", "1 is the largest frame", { low: 1, high: Math.min(8, most), value: 1 });
        const buckets = make("select", { title: "Shape of the frame; the bucket of the image comes first", "aria-label": "Bucket" },
            ...image.buckets.map((size, n) => make("option", { value: n }, n ? shape(size) : `${shape(size)} (bucket of this image)`)));
        const frame = make("i", { className: "lt-k-frame" });
        const stage = make("div", { className: "lt-k-stage" }, make("img", { src: `${lt.url(`image/${image.token}`)}?${Date.now()}`, alt: image.name, draggable: false }), frame);
        const message = make("p", { className: "lt-k-message lt-faint" });
        const bucket = () => image.buckets[Number(buckets.value)];
        const now = () => frameOf(image, bucket(), Number(zoom.value), Number(across.value), Number(down.value));

        function draw() {
            const [x, y, w, h] = now();
            const position = { left: x / image.width, top: y / image.height, width: w / image.width, height: h / image.height };
            for (const [side, share] of Object.entries(position)) frame.style[side] = `${100 * share}%`;
            const scale = Math.max(bucket()[0] / w, bucket()[1] / h);
            const blurred = scale > image.max_sharp_enlargement ? ", which trains on blur" : "";
            const resized = scale > 1.005 ? `enlarged ${scale.toFixed(2)} ×${blurred}` : `shrunk to ${percent(scale)}`;
            message.textContent = `Frame ${w} × ${h} px of ${image.width} × ${image.height}, ${percent(1 - (w * h) / (image.width * image.height))} cut off; ${resized}.`;
            message.classList.toggle("lt-k-blurred", scale > image.max_sharp_enlargement);
        }

        function drag(event) {
            if (event.type === "pointermove" && !event.buttons) return;
            const box = stage.getBoundingClientRect();
            const [, , w, h] = now();
            const at = (share, part, whole) => (whole > part ? Math.min(1, Math.max(0, (share * whole - part / 2) / (whole - part))) : 0.5);
            across.value = at((event.clientX - box.left) / box.width, w, image.width);
            down.value = at((event.clientY - box.top) / box.height, h, image.height);
            event.preventDefault();
            draw();
        }
        stage.onpointerdown = stage.onpointermove = drag;
        for (const control of [across, down, zoom, buckets]) control.oninput = draw;
        draw();
        const button = (label, name, title, onclick) => make("button", { type: "button", className: `lt-small lt-k-${name}`, title, onclick }, label);
        const field = (name, control) => make("label", { className: "lt-field lt-tool" }, make("span", {}, name), control);
        return make("div", { className: "lt-card lt-crop" },
            make("div", { className: "lt-bar-row" },
                make("h3", { className: "lt-heading" }, "Crop", make("span", {}, `${image.name}: training cuts off ${percent(image.lost)}`)),
                button("Close", "close", "Close without cropping", close)),
            make("div", { className: "lt-k-body" }, stage,
                make("div", { className: "lt-k-side" },
                    field("Bucket", buckets), field("Horizontal", across), field("Vertical", down), field("Zoom", zoom), message,
                    make("div", { className: "lt-k-buttons" },
                        button("Save crop", "write", "Crop the image file and its mask to the frame. The originals are kept beside the folder.", () => finish("write", { token: image.token, folder: image.folder, seen: image.seen, frame: now() }, close)),
                        image.undo ? button("Undo last crop", "undo", "Restore the image that was cropped last", () => finish("undo", { folder: image.folder, record: image.record }, close)) : null))));
    }

    async function finish(name, values, close) {
        const answer = await lt.request(`crop-${name}`, values).catch(lt.notify);
        if (!answer) return;
        lt.notify(answer.message);
        close();
        lt.press("scan"); // the image has changed
    }

    /** Open the editor for an image above the gallery in `container`. */
    lt.crop = async (container, token) => {
        const image = await lt.request("crop-open", { token }).catch(lt.notify);
        if (!image) return;
        show(container, image);
        container.querySelector(".lt-crop").scrollIntoView({ block: "nearest" });
    };

    /** After a scan: update the open editor if its image has changed, remove it if the image is gone. */
    lt.refreshCrop = async (container) => {
        const box = container.querySelector(".lt-crop");
        if (!box) return;
        const image = await lt.request("crop-open", { token: box.image.token }).catch(() => null);
        if (!box.isConnected) return; // closed or replaced in the meantime
        if (!image) box.remove();
        else if (JSON.stringify(image) !== JSON.stringify(box.image)) show(container, image);
    };

    function show(container, image) {
        container.querySelectorAll(".lt-crop").forEach((old) => old.remove());
        const box = editor(image, () => box.remove());
        box.image = image;
        container.prepend(box);
    }
})();
