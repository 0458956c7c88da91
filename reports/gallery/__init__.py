"""The lecture, re-enacted: CS231n's "Training Neural Networks I", claim by claim, measured.

Each page is a folder: ``page.md`` holds its prose and its claims, ``experiment.py`` measures tables
(the CSV files), judges each claim on them by the function of the claim's name, and draws the
figure. ``README.md`` is made of these. From a clone: ``make gallery``.
"""
