"""What the families' templates are filled from."""

from __future__ import annotations

NAMES = (
    "Anna",
    "Ben",
    "Carla",
    "David",
    "Emma",
    "Frank",
    "Grace",
    "Henry",
    "Ivy",
    "Jack",
    "Kate",
    "Leo",
    "Mia",
    "Noah",
)
CITIES = ("Paris", "Rome", "Oslo", "Cairo", "Lima", "Tokyo", "Madrid", "Berlin", "Athens", "Dublin", "Vienna", "Prague")
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "purple", "orange")
THINGS = ("ball", "car", "hat", "cup", "bag", "book", "chair", "lamp", "pen", "clock", "spoon", "radio")
FRUITS = ("apple", "banana", "cherry", "grape", "lemon", "mango", "orange", "peach", "pear", "plum", "fig", "kiwi")
ANIMALS = ("cat", "dog", "horse", "cow", "sheep", "goat", "duck", "rabbit", "lion", "tiger", "camel", "zebra")
WORDS = (
    "river", "stone", "cloud", "forest", "window", "garden", "silver", "candle", "bridge", "mirror", "paper", "button",
    "copper", "ladder", "meadow", "needle", "orchard", "pepper", "saddle", "tunnel", "velvet", "walnut",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"
