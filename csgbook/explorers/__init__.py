"""What a reader moves: sliders, the worked example, the networks in the page, the filter atlas."""
