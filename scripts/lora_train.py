"""Run by the webui when it starts: register the tab, settings and routes.

A webui's script path is only valid while its scripts load. The package is imported now, so that its modules are found
later, when a page opens the trainer.
"""

from modules import script_callbacks

from lib_lora_train.ui.unavailable import build_error_tab, missing_packages, missing_sentence

missing = missing_packages()
if missing:
    sentence = missing_sentence(missing)
    print(f"[LoRA Train] {sentence}")
    script_callbacks.on_ui_tabs(lambda: [(build_error_tab(sentence), "LoRA Train", "lora_train_tab")])
else:
    from lib_lora_train.hosts.webui.options import add_settings, keep_unnamed_options
    from lib_lora_train.ui.extension import add_routes, tabs

    script_callbacks.on_ui_tabs(tabs)
    script_callbacks.on_ui_settings(add_settings)
    script_callbacks.on_infotext_pasted(keep_unnamed_options)
    script_callbacks.on_app_started(add_routes)
