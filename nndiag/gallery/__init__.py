"""The lecture, re-enacted: each page a claim of CS231n's "Training Neural Networks I", measured.

A page (``pages/``) measures, which gives tables; everything else of it is a pure function of those
tables as the CSV files hold them: the figure, the judged claims, the text. So a page can be drawn
and judged again without measuring.
"""
