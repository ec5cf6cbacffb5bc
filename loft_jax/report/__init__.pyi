from .chart import COLOURS as COLOURS, DASHES as DASHES, INK as INK, Chart as Chart, style as style
from .heat import distance_maps as distance_maps, distance_to_ticket as distance_to_ticket, kept_filters as kept_filters
from .page import Part as Part, Picture as Picture, Table as Table, render as render
from .parts import kept_ratio as kept_ratio, make_picture as make_picture, write_tables as write_tables
