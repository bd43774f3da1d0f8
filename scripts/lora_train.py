"""What the webui executes at its start: imports the whole package, then registers the tab and its routes.

Everything is imported here and now, because a webui's script path is only valid while its scripts load.
"""

from modules import script_callbacks

from lib_lora_train.hosts.api import install_routes
from lib_lora_train.hosts.detect import detect_host
from lib_lora_train.hosts.page import bind_paste_button, outputs_folder, webui_access
from lib_lora_train.ui.app import open_desk
from lib_lora_train.ui.tab import TITLE, build_tab


def the_desk():
    """One per process: a run goes on while the user interface is reloaded."""
    return open_desk(outputs_folder(), detect_host)


script_callbacks.on_ui_tabs(lambda: [(build_tab(the_desk(), bind_paste_button), TITLE, "lora_train_tab")])
script_callbacks.on_app_started(lambda _blocks, app: install_routes(app, the_desk(), webui_access()))
