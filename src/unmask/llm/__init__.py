"""Model APIs: any OpenAI-compatible endpoint, its replies kept, its costs counted. The only asynchronous folder."""
