from .method import check_data as check_data, check_model as check_model
