"""What a readout or a network says: metrics, mutual information, heat maps, adversarial images."""
