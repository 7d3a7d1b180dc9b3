package shop

// kind is one leaf of the shop's taxonomy.
type kind struct {
	code   string
	weight float64 // share of the shop's interest, relative to the other kinds
	price  float64 // median price
	spread float64 // standard deviation of the price's logarithm
	brands []string
}

var (
	phones     = []string{"samsung", "apple", "xiaomi", "huawei", "oppo", "meizu", "honor", "nokia"}
	computers  = []string{"lenovo", "acer", "asus", "hp", "apple", "dell", "msi"}
	whiteGoods = []string{"lg", "samsung", "bosch", "beko", "indesit", "electrolux", "haier", "midea", "gorenje", "atlant"}
	household  = []string{"philips", "bosch", "tefal", "polaris", "redmond", "braun", "scarlett", "vitek", "moulinex", "kitfort"}
	sound      = []string{"apple", "jbl", "sony", "sennheiser", "pioneer", "panasonic", "samsung", "xiaomi"}
	screens    = []string{"samsung", "lg", "sony", "tcl", "haier", "artel", "philips", "yasin"}
	tools      = []string{"makita", "bosch", "dewalt", "karcher", "metabo", "stels", "zubr"}
	shoes      = []string{"nike", "adidas", "puma", "respect", "salomon", "rooman", "baden", "escan"}
	clothes    = []string{"sela", "emsa", "columbia", "tommyhilfiger", "levis", "mango", "sokolov"}
	furniture  = []string{"brw", "ikea", "askona", "sv", "mebelson", "stolplit"}
	children   = []string{"lego", "chicco", "cam", "nika", "hasbro", "peg-perego", "huggies", "cybex"}
	tyres      = []string{"cordiant", "michelin", "nokian", "triangle", "goodyear", "bridgestone", "viatti"}
	car        = []string{"starline", "pandora", "alpine", "pioneer", "kenwood", "eplutus", "jvc"}
	watches    = []string{"casio", "orient", "fossil", "garmin", "apple", "tissot", "amazfit"}
	cosmetics  = []string{"loreal", "nivea", "lucente", "runail", "irisk", "kapous", "masura", "grattol"}
	sports     = []string{"stels", "torrent", "altair", "forward", "bestway", "intex", "demix"}
)

// kinds of products with a category code. The weights follow the public
// clickstream that the message format comes from: phones above all.
var codedKinds = []kind{
	{"electronics.smartphone", 270, 330, 0.75, phones},
	{"electronics.video.tv", 42, 390, 0.70, screens},
	{"electronics.audio.headphone", 52, 95, 0.80, sound},
	{"electronics.audio.subwoofer", 7, 110, 0.50, car},
	{"electronics.audio.acoustic", 6, 85, 0.80, sound},
	{"electronics.clocks", 42, 190, 0.70, watches},
	{"electronics.tablet", 12, 220, 0.60, phones},
	{"electronics.telephone", 11, 30, 0.50, phones},
	{"electronics.camera.photo", 4, 560, 0.60, sound},
	{"computers.notebook", 48, 560, 0.55, computers},
	{"computers.desktop", 12, 470, 0.55, computers},
	{"computers.ebooks", 2, 150, 0.40, computers},
	{"computers.peripherals.printer", 6, 170, 0.60, computers},
	{"computers.peripherals.monitor", 8, 180, 0.50, computers},
	{"computers.peripherals.mouse", 5, 22, 0.70, computers},
	{"computers.peripherals.keyboard", 4, 38, 0.70, computers},
	{"computers.components.videocards", 4, 260, 0.60, computers},
	{"computers.components.cpu", 4, 190, 0.55, computers},
	{"computers.components.motherboard", 3, 95, 0.45, computers},
	{"computers.components.memory", 2, 60, 0.50, computers},
	{"appliances.kitchen.refrigerators", 38, 440, 0.45, whiteGoods},
	{"appliances.kitchen.washer", 36, 320, 0.40, whiteGoods},
	{"appliances.kitchen.oven", 9, 310, 0.45, whiteGoods},
	{"appliances.kitchen.hood", 6, 140, 0.50, whiteGoods},
	{"appliances.kitchen.hob", 6, 190, 0.50, whiteGoods},
	{"appliances.kitchen.dishwasher", 4, 350, 0.35, whiteGoods},
	{"appliances.kitchen.microwave", 9, 95, 0.40, whiteGoods},
	{"appliances.kitchen.kettle", 9, 34, 0.50, household},
	{"appliances.kitchen.blender", 8, 52, 0.60, household},
	{"appliances.kitchen.meat_grinder", 5, 75, 0.45, household},
	{"appliances.kitchen.coffee_machine", 4, 290, 0.80, household},
	{"appliances.kitchen.mixer", 4, 62, 0.80, household},
	{"appliances.kitchen.toster", 2, 32, 0.40, household},
	{"appliances.environment.vacuum", 32, 120, 0.65, household},
	{"appliances.environment.air_heater", 11, 52, 0.55, household},
	{"appliances.environment.water_heater", 9, 125, 0.45, whiteGoods},
	{"appliances.environment.air_conditioner", 4, 300, 0.40, whiteGoods},
	{"appliances.environment.fan", 2, 30, 0.50, household},
	{"appliances.iron", 10, 42, 0.60, household},
	{"appliances.ironing_board", 2, 36, 0.40, household},
	{"appliances.personal.scales", 4, 26, 0.50, household},
	{"appliances.personal.hair_cutter", 4, 34, 0.50, household},
	{"appliances.personal.massager", 3, 70, 0.80, household},
	{"appliances.sewing_machine", 3, 170, 0.45, household},
	{"apparel.shoes", 23, 78, 0.50, shoes},
	{"apparel.shoes.keds", 14, 62, 0.45, shoes},
	{"apparel.shoes.sandals", 3, 48, 0.40, shoes},
	{"apparel.shoes.slipons", 2, 55, 0.40, shoes},
	{"apparel.costume", 4, 48, 0.60, clothes},
	{"apparel.shirt", 3, 36, 0.50, clothes},
	{"apparel.trousers", 2, 44, 0.50, clothes},
	{"apparel.jeans", 2, 52, 0.45, clothes},
	{"apparel.underwear", 2, 18, 0.50, clothes},
	{"accessories.bag", 6, 42, 0.70, clothes},
	{"accessories.wallet", 2, 28, 0.60, clothes},
	{"accessories.umbrella", 1, 18, 0.40, clothes},
	{"furniture.living_room.sofa", 9, 330, 0.50, furniture},
	{"furniture.living_room.cabinet", 7, 160, 0.50, furniture},
	{"furniture.living_room.chair", 3, 90, 0.60, furniture},
	{"furniture.bedroom.bed", 9, 240, 0.50, furniture},
	{"furniture.bedroom.blanket", 3, 32, 0.50, furniture},
	{"furniture.bedroom.pillow", 2, 20, 0.50, furniture},
	{"furniture.kitchen.table", 5, 110, 0.60, furniture},
	{"furniture.bathroom.bath", 4, 210, 0.60, furniture},
	{"furniture.bathroom.toilet", 2, 130, 0.50, furniture},
	{"construction.tools.drill", 9, 88, 0.55, tools},
	{"construction.tools.saw", 5, 110, 0.60, tools},
	{"construction.tools.welding", 3, 120, 0.45, tools},
	{"construction.tools.light", 6, 35, 0.80, tools},
	{"construction.tools.generator", 2, 290, 0.60, tools},
	{"construction.components.faucet", 3, 60, 0.60, tools},
	{"kids.toys", 9, 24, 0.80, children},
	{"kids.carriage", 9, 210, 0.50, children},
	{"kids.dolls", 3, 22, 0.60, children},
	{"kids.swing", 2, 95, 0.40, children},
	{"kids.skates", 2, 48, 0.50, children},
	{"auto.accessories.player", 9, 95, 0.60, car},
	{"auto.accessories.alarm", 4, 120, 0.40, car},
	{"auto.accessories.videoregister", 4, 75, 0.60, car},
	{"auto.accessories.compressor", 3, 32, 0.40, car},
	{"sport.bicycle", 6, 230, 0.60, sports},
	{"sport.trainer", 2, 190, 0.80, sports},
	{"sport.ski", 1, 150, 0.50, sports},
	{"country_yard.cultivator", 2, 320, 0.50, tools},
	{"country_yard.lawn_mower", 1, 210, 0.50, tools},
	{"medicine.tools.tonometer", 2, 38, 0.45, household},
	{"stationery.cartrige", 3, 28, 0.80, computers},
	{"stationery.paper", 1, 9, 0.40, computers},
}

// uncodedKinds are categories that the shop numbers but does not name.
var uncodedKinds = []kind{
	{"", 60, 75, 0.50, tyres},
	{"", 55, 28, 0.90, cosmetics},
	{"", 50, 65, 0.60, clothes},
	{"", 45, 85, 0.60, shoes},
	{"", 40, 120, 0.90, furniture},
	{"", 35, 40, 0.90, children},
	{"", 30, 55, 1.00, tools},
	{"", 30, 22, 0.80, phones},
	{"", 25, 260, 0.70, watches},
	{"", 25, 15, 0.90, household},
	{"", 20, 180, 0.80, sports},
	{"", 20, 35, 0.80, car},
	{"", 15, 12, 0.70, cosmetics},
	{"", 15, 48, 0.90, clothes},
	{"", 12, 300, 0.60, screens},
	{"", 10, 95, 0.80, sound},
	{"", 10, 20, 0.60, computers},
	{"", 8, 150, 0.60, whiteGoods},
	{"", 8, 33, 0.90, furniture},
	{"", 5, 60, 0.90, children},
}

// Shares of events, as in the public clickstream.
const (
	uncodedShare        = 0.32 // category_code missing
	brandlessUncoded    = 0.31 // brand missing, among events without category_code
	brandlessCoded      = 0.06 // brand missing, among the others; 0.14 together
	categoryIDBase      = 2053013552226107000
	firstProductID      = 1000000
	userIDBase          = 512000000
	cheapestPrice       = 0.99
	dearestPrice        = 2574.07 // the public data's highest price
	popularityExponent  = 0.9     // of the rank, within a category
	productsEachAtLeast = 3
)
