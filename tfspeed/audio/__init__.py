"""Sound on its way into a model: WAV files and streams, 16 kHz samples, log-mel frames."""
