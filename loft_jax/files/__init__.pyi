from .archives import DAMAGED as DAMAGED, pack_arrays as pack_arrays
from .cache import cache_directory as cache_directory, cached_arrays as cached_arrays
from .whole import (
    ASIDE as ASIDE,
    Row as Row,
    claim_new as claim_new,
    clear_leftovers as clear_leftovers,
    directory_aside as directory_aside,
    ensure_writable as ensure_writable,
    put_aside as put_aside,
    replacing as replacing,
    stop_on_write_error as stop_on_write_error,
    table_text as table_text,
    write_atomically as write_atomically,
    write_table as write_table,
)
