"""Images and labels: sources, quality, parts, augmentation on the device."""
