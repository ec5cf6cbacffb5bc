from .build import check_data as check_data, check_method as check_method, make_method as make_method
from .idle import idle_advice as idle_advice
