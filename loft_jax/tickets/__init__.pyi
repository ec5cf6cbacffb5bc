from .options import (
    add_ticket_options as add_ticket_options,
    check_saved as check_saved,
    ratio as ratio,
    rules_of as rules_of,
)
from .search import Reference as Reference, TicketSearch as TicketSearch
from .search_files import SearchFiles as SearchFiles, read_distances as read_distances
from .snapshots import Snapshots as Snapshots, finite_scores as finite_scores, load_own_data as load_own_data
from .ticket import (
    Pruning as Pruning,
    Ticket as Ticket,
    check_fits as check_fits,
    load_ticket as load_ticket,
    ratio_text as ratio_text,
    read_ticket as read_ticket,
    ticket_name as ticket_name,
)
