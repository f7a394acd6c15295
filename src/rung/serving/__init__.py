"""An OpenAI-compatible server for artifacts and their base models: what was measured is what is served.

front.py       every request passes here first: host, origin, key, rate, size; it also notices clients that leave
scheduler.py   one thread per base model runs its engine; requests of all clients share its steps
served.py      what is served: base models and artifacts, loaded and unloaded while the server runs
answering.py   how an artifact answers a request, so that the answer is that of `Artifact.predict`
*_api.py       the endpoints
"""
