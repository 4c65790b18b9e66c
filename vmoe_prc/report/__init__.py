"""The results of many runs as tables: mean and spread over seeds, published figures beside."""
