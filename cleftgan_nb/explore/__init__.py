"Exploring: latents, what layers hold, sliders"
