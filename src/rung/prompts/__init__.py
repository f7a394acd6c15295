"""From a row to chat messages: templates, demonstrations, verbalizers, calibration, parsing."""
