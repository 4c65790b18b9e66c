"""Results of many runs as tables and pages: mean and spread over seeds, with published figures."""
