"""Pictures and sounds beside text: what is trained on (`samples`), and how a GPT comes to see and hear (`encoders`, `fusion`)."""
